"""A folder as Kubernetes mounts a ConfigMap, and the turn to its next version."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path


class ConfigMap:
    """Takes the steps of kubelet's writer, in the same order."""

    def __init__(self, path):
        self.path = Path(path)
        self.path.mkdir(exist_ok=True)
        self.number = -1

    def turn(self, files):
        self.number += 1
        version = self.path / f"..{os.getpid()}_{self.number}"
        version.mkdir()
        for name, text in files.items():
            (version / name).write_text(text)
        data, old = self.path / "..data", None
        if data.is_symlink():
            old = self.path / os.readlink(data)
        (self.path / "..data_tmp").symlink_to(version.name)
        (self.path / "..data_tmp").rename(data)
        links = {name for name in os.listdir(self.path) if not name.startswith("..")}
        for name in files.keys() - links:
            (self.path / name).symlink_to(f"..data/{name}")
        for name in links - files.keys():
            (self.path / name).unlink()
        if old is not None:
            shutil.rmtree(old)


def names_of(number):
    """Return the files that a version has."""
    return ["a", "b", f"c{number % 3}"]


def storm(path, turns):
    """Turn to one version after the other; every file of a version contains its number.

    Every thirtieth version stays for a while, so that readers see some of them.
    """
    mount = ConfigMap(path)
    for number in range(1, turns + 1):
        mount.turn({name: str(number) for name in names_of(number)})
        if not number % 30:
            time.sleep(0.05)
