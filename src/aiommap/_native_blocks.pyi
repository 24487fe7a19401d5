"""The contract of the native module, as far as cached blocks go.

Conventions as in ``_native.pyi``, which has all of these; "waits" says what is for worker threads.
States of a block are 0 EMPTY, 1 BUSY, 2 PRESENT, 3 SUSPECT; ``sys/block_map.h`` says what each is
worth. A *claim* is (block, word): a block, and the word that it has.
"""

from typing import TypeAlias, final

from typing_extensions import Buffer

_Claim: TypeAlias = tuple[int, int]

def punch_hole(fd: int, offset: int, length: int, /) -> None:
    """Give the disk blocks of a range back (waits)."""

@final
class Blocks:
    """The words and sums of one object; and its bytes, by a descriptor that the caller keeps open.

    Args, by place: descriptors of both files, bytes of the object, the power of 2 of a block, the
    number of the owner that claims are made by, and a number that tells the object from others.
    """

    hits: int  # settable: reads answered inline
    damaged: bool  # the file of the words was cut off: nothing is believed any more
    count: int

    def __new__(
        cls, map_fd: int, data_fd: int, size: int, shift: int, owner: int, salt: int, /
    ) -> Blocks:
        """Map the words (waits)."""

    def read_inline(self, mapping: object, offset: object, length: object, /) -> bytes | None:
        """Read through a Mapping of the data what is PRESENT, and in memory; inline."""

    def read(self, offset: int, length: int, /) -> bytes | None:
        """Read by the descriptor (waits); None if not all of it is PRESENT throughout."""

    def states(self, first: int, end: int, /) -> bytes:
        """Tell the state of each block of [first, end), a byte each."""

    def missing(self, first: int, end: int, /) -> list[tuple[int, int]]:
        """List the runs of blocks in [first, end) that are not PRESENT."""

    def present(self, first: int, end: int, /) -> list[tuple[int, int]]:
        """List the runs of blocks in [first, end) that are PRESENT."""

    def claim(self, first: int, end: int, /) -> tuple[list[_Claim], list[_Claim]]:
        """Make the EMPTY blocks of [first, end) BUSY by us.

        Returns them, and all others that are not PRESENT, with their words.
        """

    def exchange(self, block: int, word: int, state: int, /) -> int | None:
        """Change a word that is still as given; BUSY means by us. Wakes who waits for the block.

        Returns the new word, None if it was another one.
        """

    def word(self, block: int, /) -> int:
        """Load the word of a block."""

    def store(self, claims: list[_Claim], data: Buffer, start: int, /) -> tuple[int, int]:
        """Write blocks that are claimed, store their sums and publish them (waits).

        ``data`` begins with byte ``start`` of the object, and has all of each block. Returns how
        many were published, and the errno that cut it short, or 0; ESTALE if the file of the data
        was cut off, ENOENT if it has no name any more. A claim that others took over is not
        published.
        """

    def verify(self, first: int, end: int, /) -> tuple[int, int, int]:
        """Compare the blocks of [first, end) with their sums (waits).

        Returns how many are good, how many are bad, and the bytes of both. SUSPECT ones that are
        good become PRESENT; bad ones EMPTY.
        """

    def distrust(self) -> None:
        """Make PRESENT blocks SUSPECT, and BUSY ones EMPTY (waits); nobody else has the object."""

    def referenced(self) -> bool:
        """Tell whether any block was read since the last sweep (waits)."""

    def any_present(self) -> bool:
        """Tell whether any block is PRESENT or SUSPECT (waits)."""

    def sweep(self, first: int, end: int, most: int, force: bool, /) -> tuple[list[_Claim], int]:
        """Claim blocks that were not referenced since the last sweep, or any with ``force``.

        Returns them, and where it ended.
        """

    def wait(self, block: int, word: int, seconds: float, /) -> None:
        """Wait until a word is not as given any more, for so long at most (waits)."""
