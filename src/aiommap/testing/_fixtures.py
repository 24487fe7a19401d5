"""The fixture; pytest finds it in the namespace of a test module or a conftest."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from typing import Protocol, TypeVar

import pytest

T = TypeVar("T")


class InjectFault(Protocol):
    """The type of the fixture ``inject_fault``: enters context managers for the rest of a test."""

    @abstractmethod
    def __call__(self, fault: AbstractContextManager[T], /) -> T:
        """Put a fault in place and return what ``with`` would bind."""


@pytest.fixture
def inject_fault() -> Iterator[InjectFault]:
    """Put faults in place for the rest of a test.

    When the test has ended, in whatever way, the fixture removes them in reverse order; fixtures
    that were set up earlier are torn down afterwards.

    Example: ``disk = inject_fault(slow_disk(f))``
    """
    with ExitStack() as faults:
        yield faults.enter_context
