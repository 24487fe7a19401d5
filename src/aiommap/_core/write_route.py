"""Which way the writes of one file take: inline, by the store queue, or by the commit queue."""

from __future__ import annotations

from .._flush_policy import FlushPolicy
from .._native import Mapping
from .unsynced import Unsynced


class WriteRoute:
    """Chosen by the option ``inline_writes``, the flush policy and the latch.

    Attributes:
        policy: the flush policy.
        durable: whether writes are requests of the commit queue, unless others still wait in the
            store queue.
        draining: whether writes of a policy that was replaced may still wait in the commit queue.
    """

    __slots__ = ("_inline", "_mapping", "_shared", "_unsynced", "draining", "durable", "policy")

    def __init__(
        self,
        mapping: Mapping,
        policy: FlushPolicy,
        unsynced: Unsynced,
        *,
        shared: bool,
        inline: bool,
    ) -> None:
        self._mapping = mapping
        self._unsynced = unsynced
        #: Whether stores reach the file, and whether the loop thread may store at all.
        self._shared = shared
        self._inline = inline
        self.policy: FlushPolicy = policy
        self.durable: bool = False
        self.draining: bool = False
        self.choose()

    def choose(self) -> None:
        """Let native code store on the loop thread, unless option, policy or a failure forbid it.

        It is told whether the policy flushes unasked, for its choice of the way of a store.

        Not while writes wait in the commit queue either, of a policy that was replaced: they come
        first (I9).
        """
        self.durable = (self.policy.flush_each_write and self._shared) or self.draining
        inline = self._inline and not self.durable and self._unsynced.failure is None
        self._mapping.inline_writes = inline
        self._mapping.flush_expected = not self.policy.passive

    def replace_policy(self, policy: FlushPolicy, *, flushing: bool) -> None:
        """Go on with another policy; writes may still wait in the commit queue while it flushes."""
        self.draining = self.durable and flushing
        self.policy = policy
        self.choose()

    def end_draining(self) -> None:
        """Take note that no write of a policy that was replaced waits any more."""
        self.draining = False
        self.choose()
