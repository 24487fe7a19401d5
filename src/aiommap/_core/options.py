"""The options of opening, checked before the file is touched."""

from __future__ import annotations

import os
import reprlib
from dataclasses import dataclass, replace
from typing import TypedDict, Unpack

from .._advice import Advice
from .._arguments import byte_count, check_kind
from .._errors import UnsupportedError
from .._flush_policy import MANUAL, FlushPolicy
from .nameless import AnonymousMemory, GivenDescriptor
from .paths import FilePath


@dataclass(frozen=True, slots=True)
class Mode:
    """The meaning of one of the modes.

    Attributes:
        name: its letters.
        flags: the flags of open(2).
        writable: whether stores are allowed.
        private: whether stores stay in this object.
        makes: whether opening creates or overwrites the file, with a given size.
        appends: whether opening may create the file, and ``append`` shares its end with other
            processes.
    """

    name: str
    flags: int
    writable: bool = False
    private: bool = False
    makes: bool = False
    appends: bool = False


MODES = {
    mode.name: mode
    for mode in (
        Mode("r", os.O_RDONLY),
        Mode("r+", os.O_RDWR, writable=True),
        Mode("w+", os.O_RDWR | os.O_CREAT, writable=True, makes=True),
        Mode("x+", os.O_RDWR | os.O_CREAT | os.O_EXCL, writable=True, makes=True),
        Mode("a+", os.O_RDWR | os.O_CREAT, writable=True, appends=True),
        Mode("c", os.O_RDONLY, writable=True, private=True),
    )
}


def check_policy(policy: object, name: str = "flush") -> FlushPolicy:
    """Return a flush policy; raise a TypeError for anything else."""
    return check_kind(policy, FlushPolicy, name, "use one of the FlushPolicy class methods")


def check_volatile_policy(policy: FlushPolicy, path: str) -> None:
    """Raise if a policy would flush memory that no flush makes durable."""
    if policy not in (MANUAL, FlushPolicy.never()):
        reason = "it is memory, of which nothing is durable: use FlushPolicy.never() or manual()"
        raise UnsupportedError(f"flush {path} by a policy", reason)


def check_advice(advice: object) -> Advice:
    """Return an advice; raise a TypeError for anything else."""
    return check_kind(advice, Advice, "advice", "use a member of Advice")


class OpenKeywords(TypedDict, total=False):
    """The keyword arguments of ``open``, which documents them."""

    size: int | None
    capacity: int | None
    sparse: bool
    flush: FlushPolicy
    advice: Advice | None
    prewarm: bool
    lock: bool
    huge_pages: bool
    inline_writes: bool


#: The options that are either True or False.
_SWITCHES = ("sparse", "prewarm", "lock", "huge_pages", "inline_writes")


@dataclass(frozen=True, slots=True)
class OpenOptions:
    """All options of ``open``, checked."""

    where: FilePath | GivenDescriptor | AnonymousMemory
    mode: Mode
    size: int | None = None
    capacity: int | None = None
    sparse: bool = False
    flush: FlushPolicy = MANUAL
    advice: Advice | None = None
    prewarm: bool = False
    lock: bool = False
    huge_pages: bool = False
    inline_writes: bool = True
    #: Whether this opens the path again: the file that is there may need more capacity.
    again: bool = False
    #: Whether a part of another object is opened, which warns itself if it is never closed.
    part: bool = False

    @property
    def path(self) -> str:
        """The path from the root, or the name that messages use instead of one."""
        return self.where.whole

    @property
    def has_path(self) -> bool:
        """Whether a path leads to the file."""
        return isinstance(self.where, FilePath)

    @classmethod
    def check(
        cls, path: str | os.PathLike[str] | int, mode: str, **given: Unpack[OpenKeywords]
    ) -> OpenOptions:
        """Check the arguments of ``open`` before the file is touched; defaults as for ``open``."""
        check_mode(mode)
        return cls._check(cls(_where(path, MODES[mode]), MODES[mode], **given))

    @classmethod
    def check_memory(cls, size: int, capacity: int | None, *, seal: bool) -> OpenOptions:
        """Check the arguments for anonymous memory, which is made and never durable."""
        if check_kind(seal, bool, "seal", "it is either True or False") and capacity is not None:
            raise ValueError("seal=True fixes the size: leave capacity out, or seal it later")
        never = FlushPolicy.never()
        memory = AnonymousMemory(seal)
        return cls._check(cls(memory, MODES["w+"], size, capacity, sparse=True, flush=never))

    @staticmethod
    def _check(asked: OpenOptions) -> OpenOptions:
        mode = asked.mode.name
        makes = asked.mode.makes
        if makes != (asked.size is not None) and not asked.mode.appends:
            need = "needs" if makes else "takes no"
            raise ValueError(f'mode "{mode}" {need} size: ' + _SIZE_REMEDY[makes])
        if asked.sparse and not asked.mode.writable:
            raise ValueError(f'sparse=True has no meaning in mode "{mode}": nothing is reserved')
        length = None if asked.size is None else byte_count(asked.size, "size")
        room = None if asked.capacity is None else byte_count(asked.capacity, "capacity")
        if room is not None and asked.mode.private:
            raise ValueError('mode "c" takes no capacity: a private file cannot grow')
        if length is not None and room is not None and room < length:
            raise ValueError(f"capacity is {room}, less than size {length}: make it at least that")
        if asked.advice is not None:
            check_advice(asked.advice)
        for name in _SWITCHES:
            check_kind(getattr(asked, name), bool, name, "it is either True or False")
        check_policy(asked.flush)
        return replace(asked, size=length, capacity=room)


def _where(path: str | os.PathLike[str] | int, mode: Mode) -> FilePath | GivenDescriptor:
    if isinstance(path, int) and not isinstance(path, bool):
        return GivenDescriptor.check(path, mode.name, mode.flags)
    if not isinstance(path, str | bytes | os.PathLike):
        remedy = "give a str, an object with a path, or the number of a descriptor"
        raise TypeError(f"path is {reprlib.repr(path)}: {remedy}")
    return FilePath.check(path)


def check_mode(mode: object) -> None:
    """Raise unless this is a mode; the error translates modes of the built-in ``open``."""
    if isinstance(mode, str) and mode in MODES:
        return
    error = f"mode is {mode!r}: use one of " + ", ".join(map(repr, MODES))
    if not isinstance(mode, str):
        raise TypeError(error)
    letters = "".join(sorted(mode.replace("b", "").replace("t", "")))
    meant = _MEANT.get("".join(dict.fromkeys(letters)))
    if meant is not None:
        error += f"; for {mode!r} that is {meant}"
        if "t" in mode:
            error += ", and what is read and written is bytes, not text"
    raise ValueError(error)


#: What to use for modes of the built-in ``open``, by their sorted letters without "b" and "t".
_MEANT = {
    "r": '"r"',
    "+r": '"r+"',
    "w": '"w+" with size=, the number of bytes to create',
    "+w": '"w+" with size=, the number of bytes to create',
    "x": '"x+" with size=, the number of bytes to create',
    "+x": '"x+" with size=, the number of bytes to create',
    "a": '"a+", and append() for what is written at the end',
    "+a": '"a+", and append() for what is written at the end',
}

_SIZE_REMEDY = {
    True: "pass size=, the number of bytes to create",
    False: "the size is the file's own; use resize() once it is open",
}


def reopening(options: OpenOptions) -> OpenOptions:
    """Return the options to open the path again; only "a+" then creates a file."""
    mode = MODES["r+"] if options.mode.makes else options.mode
    return replace(options, mode=mode, size=None, again=True)
