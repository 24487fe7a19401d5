"""What the batch queue of a log carries, and the results of its items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from .._typing import Buffer


class Flush:
    """A request to make durable all that was appended before."""

    __slots__ = ()


class Writeback:
    """A request to begin write-back."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Together:
    """Records to publish together."""

    items: list[Buffer]


@dataclass(frozen=True, slots=True)
class Discard:
    """A request to drop each segment whose records all come before a sequence."""

    before: int


#: What the queue of a log carries: the data of a record, or a request.
Item: TypeAlias = Buffer | Flush | Writeback | Together | Discard
#: The result of an item: the sequence of its last record (of any, for a request), or an error.
Outcome: TypeAlias = int | BaseException
