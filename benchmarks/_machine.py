"""Describe the machine of a run: without that, figures mean nothing."""

from __future__ import annotations

import os
import platform
import tempfile
from datetime import UTC, datetime

import aiommap
from aiommap._cli._system import file_system


def describe() -> dict[str, object]:
    """Record machine, kernel, file system of the scratch folder, and versions."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * aiommap.PAGE_SIZE / (1 << 30)),
        "file_system": file_system(tempfile.gettempdir()),
        "python": platform.python_version(),
        "date": datetime.now(UTC).date().isoformat(),
    }


def in_words(machine: dict[str, object]) -> str:
    """Write the description as the first line of a run."""
    return (
        "{system}, {file_system}, {cores} cores ({processor}), {memory_gib} GiB, Python {python}"
    ).format(**machine)


def _processor() -> str:
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.machine()
