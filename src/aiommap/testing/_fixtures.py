"""The fixture; it is found once a test module or a conftest has it in its namespace."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Protocol, TypeVar

import pytest

T = TypeVar("T")


class InjectFault(Protocol):
    """What the fixture ``inject_fault`` is: enters a context manager for the rest of the test."""

    @abstractmethod
    def __call__(self, fault: AbstractContextManager[T], /) -> T:
        """Put a fault in place and return what ``with`` would bind."""


@pytest.fixture
def inject_fault() -> Iterator[InjectFault]:
    """Put faults in place for the rest of a test.

    They are taken away in reverse order when the test has ended, however it ended, before the
    fixtures are torn down that were set up earlier.

    Example: ``disk = inject_fault(slow_disk(f))``
    """
    with ExitStack() as faults:
        yield faults.enter_context
