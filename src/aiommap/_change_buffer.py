"""The buffer of one subscriber: bounded, merging when it is full. Pure."""

from __future__ import annotations

from collections import deque

from ._change import Change, merge


class _Cell:
    __slots__ = ("change",)

    def __init__(self, change: Change) -> None:
        self.change = change


class ChangeBuffer:
    """Changes in order of arrival; in a full one, a change joins the newest of the same path.

    It holds ``limit`` changes, or one of each path if those are more.
    """

    __slots__ = ("_cells", "_limit", "_newest")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._cells: deque[_Cell] = deque()
        self._newest: dict[str, _Cell] = {}

    def __len__(self) -> int:
        return len(self._cells)

    def push(self, change: Change) -> None:
        """Add a change, or merge it."""
        newest = self._newest.get(change.path)
        if newest is not None and len(self._cells) >= self._limit:
            newest.change = merge(newest.change, change)
            return
        cell = self._newest[change.path] = _Cell(change)
        self._cells.append(cell)

    def pop(self) -> Change:
        """Take the oldest change out."""
        cell = self._cells.popleft()
        if self._newest[cell.change.path] is cell:
            del self._newest[cell.change.path]
        return cell.change
