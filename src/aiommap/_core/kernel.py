"""The version of the kernel."""

from __future__ import annotations


def kernel_version(release: str) -> tuple[int, ...]:
    """Return the first two numbers of a release of uname(2), such as "6.1.0-18-amd64"."""
    numbers = release.split("-")[0].split(".")[:2]
    return tuple(int(number) for number in numbers if number.isdigit())
