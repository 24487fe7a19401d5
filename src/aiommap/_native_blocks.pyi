"""The part of the contract of the native module for cached blocks.

The conventions are those of ``_native.pyi``, which exports all names here. "(waits)" marks calls
for worker threads. The states of a block are 0 EMPTY, 1 BUSY, 2 PRESENT, 3 SUSPECT;
``sys/block_map.h`` explains them. A *claim* is (block, word): a block, and the word that it has.
"""

from typing import TypeAlias, final

from typing_extensions import Buffer

_Claim: TypeAlias = tuple[int, int]

def punch_hole(fd: int, offset: int, length: int, /) -> None:
    """Give the disk blocks of a range back (waits)."""

@final
class Blocks:
    """The words and sums of one object, and its bytes, by a descriptor that the caller keeps open.

    Args, by position: the descriptors of both files, the bytes of the object, the bytes of a block
    as a power of 2, the number of the owner who makes claims, and a number that tells the object
    from others.
    """

    hits: int  # settable: reads answered inline
    damaged: bool  # the file of the words was cut off, so no word counts
    count: int

    def __new__(
        cls, map_fd: int, data_fd: int, size: int, shift: int, owner: int, salt: int, /
    ) -> Blocks:
        """Map the words (waits)."""

    def read_inline(self, mapping: object, offset: object, length: object, /) -> bytes | None:
        """Read through a Mapping of the data, inline; None unless all is PRESENT and in memory."""

    def read(self, offset: int, length: int, /) -> bytes | None:
        """Read by the descriptor (waits); None unless all blocks are PRESENT until the end."""

    def states(self, first: int, end: int, /) -> bytes:
        """Return the state of each block of [first, end), one byte per block."""

    def missing(self, first: int, end: int, /) -> list[tuple[int, int]]:
        """List the runs of blocks in [first, end) that are not PRESENT."""

    def present(self, first: int, end: int, /) -> list[tuple[int, int]]:
        """List the runs of blocks in [first, end) that are PRESENT or SUSPECT."""

    def claim(self, first: int, end: int, /) -> tuple[list[_Claim], list[_Claim]]:
        """Make the EMPTY blocks of [first, end) BUSY, with us as their owner.

        Returns claims of these blocks, and claims of all others that are not PRESENT.
        """

    def exchange(self, block: int, word: int, state: int, /) -> int | None:
        """Change the word of a block if it is as given, and wake tasks that wait for the block.

        With BUSY we become the owner. Returns the new word; None if the word was another one.
        """

    def word(self, block: int, /) -> int:
        """Load the word of a block."""

    def store(self, claims: list[_Claim], data: Buffer, start: int, /) -> tuple[int, int]:
        """Write claimed blocks, store their sums and publish them (waits).

        ``data`` begins with byte ``start`` of the object, and has each block whole. Returns how
        many blocks were published, and the errno that stopped it, or 0; ESTALE if the file of the
        data was cut off, ENOENT if it has no name left. A block that another owner took over is not
        published.
        """

    def verify(self, first: int, end: int, /) -> tuple[int, int, int]:
        """Compare the blocks of [first, end) with their sums (waits).

        Returns how many are good, how many are bad, and the bytes of both. SUSPECT blocks that are
        good become PRESENT, and bad blocks become EMPTY.
        """

    def distrust(self) -> None:
        """Make PRESENT blocks SUSPECT, and BUSY ones EMPTY (waits), if nobody else has them."""

    def referenced(self) -> bool:
        """Tell whether any block was read since the last sweep (waits)."""

    def any_present(self) -> bool:
        """Tell whether any block is PRESENT or SUSPECT (waits)."""

    def sweep(self, first: int, end: int, most: int, force: bool, /) -> tuple[list[_Claim], int]:
        """Claim blocks that were not referenced since the last sweep; with ``force``, any blocks.

        Returns the claims, at most ``most``, and the block where the sweep ended.
        """

    def wait(self, block: int, word: int, seconds: float, /) -> None:
        """Wait until the word of a block differs from the given one, or time is over (waits)."""
