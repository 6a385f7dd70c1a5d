"""Sparse files in tar archives: the positions of the stored bytes in the file."""

from __future__ import annotations

from image.unpack.tar_header import Entry, TarError, number

SPARSE_LIMIT = 1 << 16  # segments of one sparse file


def segment_numbers(fields: bytes) -> list[int]:
    """Parse offsets and lengths of GNU sparse headers, 12 bytes each; an empty pair ends the list."""
    numbers: list[int] = []
    for at in range(0, len(fields), 24):
        pair = fields[at : at + 24]
        if pair[0] == 0 or pair[12] == 0:
            break
        numbers += (number(pair[:12]), number(pair[12:]))
    return numbers


def pairs(numbers: list[int]) -> tuple[tuple[int, int], ...]:
    if len(numbers) % 2 or len(numbers) > 2 * SPARSE_LIMIT:
        raise TarError("sparse map of odd or excessive length")
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def check_segments(entry: Entry) -> None:
    """Check that segments ascend, do not overlap, stay inside the file, and have the size of the stored data."""
    end = total = 0
    for offset, length in entry.segments or ():
        if offset < end:
            raise TarError("sparse segments overlap")
        end = offset + length
        total += length
    if end > entry.size or total != entry.stored:
        raise TarError("sparse map does not fit the file")
