"""Tests for code that builds on aiommap; needs pytest, and is not loaded by ``import aiommap``.

It is not an entry point of pytest: as one, pytest would load aiommap in every test run of an
environment, before a measurement of coverage begins. Name it in the topmost ``conftest.py``:
``pytest_plugins = ["aiommap.testing"]``. The context managers work without that.
"""

from __future__ import annotations

from types import FunctionType

try:
    import pytest
except ImportError as _missing:
    raise ImportError("aiommap.testing needs pytest: pip install pytest") from _missing

# Before the import, so that a failing assertion shows its values in a user's project, too.
pytest.register_assert_rewrite("aiommap.testing._storage_backend")

from ._changes import removed_file as removed_file  # noqa: E402
from ._changes import replaced_file as replaced_file  # noqa: E402
from ._changes import truncated_file as truncated_file  # noqa: E402
from ._disk import InjectedFault as InjectedFault  # noqa: E402
from ._faults import SlowDisk as SlowDisk  # noqa: E402
from ._faults import failing_flush as failing_flush  # noqa: E402
from ._faults import full_disk as full_disk  # noqa: E402
from ._faults import slow_disk as slow_disk  # noqa: E402
from ._fixtures import InjectFault as InjectFault  # noqa: E402
from ._fixtures import inject_fault as inject_fault  # noqa: E402
from ._storage_backend import StorageBackendSuite as StorageBackendSuite  # noqa: E402

__all__ = (
    "InjectFault",
    "InjectedFault",
    "SlowDisk",
    "StorageBackendSuite",
    "failing_flush",
    "full_disk",
    "inject_fault",
    "removed_file",
    "replaced_file",
    "slow_disk",
    "truncated_file",
)

for _name in __all__:
    if isinstance(_value := globals()[_name], type | FunctionType):
        _value.__module__ = __name__
