"""The fixture; pytest finds it in the namespace of a test module or a conftest."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Protocol, TypeVar

import pytest

T = TypeVar("T")


class InjectFault(Protocol):
    """The type of the fixture ``inject_fault``: it enters a context manager until the test ends."""

    @abstractmethod
    def __call__(self, fault: AbstractContextManager[T], /) -> T:
        """Put a fault in place, and return the object that ``with ... as`` would give."""


@pytest.fixture
def inject_fault() -> Iterator[InjectFault]:
    """Put faults in place for the rest of a test.

    However the test ends, the fixture then removes the faults in reverse order. Fixtures that were
    set up before this one are torn down after it.

    Example: ``disk = inject_fault(slow_disk(f))``
    """
    with ExitStack() as faults:
        yield faults.enter_context
