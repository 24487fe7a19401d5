"""Which way the writes of one file take: inline, by the store queue, or by the commit queue."""

from __future__ import annotations

from .._flush_policy import FlushPolicy
from .._native import Mapping
from .unsynced import Unsynced


class WriteRoute:
    """The route of writes, which depends on ``inline_writes``, the flush policy and the latch.

    Attributes:
        policy: the flush policy.
        durable: whether writes go to the commit queue, once none waits in the store queue.
        draining: whether the commit queue may still have writes of a policy that was replaced.
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
        """Let native code store on the loop thread, unless option, policy or a failure forbids it.

        Writes of a replaced policy that still wait in the commit queue forbid it, too: they come
        first (I9). Native code also learns whether background flushes are to be expected, because
        its choice between pwrite(2) and the mapping depends on that.
        """
        self.durable = (self.policy.flush_each_write and self._shared) or self.draining
        inline = self._inline and not self.durable and self._unsynced.failure is None
        self._mapping.inline_writes = inline
        self._mapping.flush_expected = not self.policy.passive

    def replace_policy(self, policy: FlushPolicy, *, flushing: bool) -> None:
        """Go on with another policy; if ``flushing``, the commit queue may still have writes."""
        self.draining = self.durable and flushing
        self.policy = policy
        self.choose()

    def end_draining(self) -> None:
        """Note that the commit queue has no more writes of the policy that was replaced."""
        self.draining = False
        self.choose()
