"""Reads a bolt database (etcd-io/bbolt), as containerd keeps its metadata in. Read only, from a copy of the file.

The file is made of pages. Pages 0 and 1 each describe a state of the database; the newer valid one counts. A bucket is
a B+ tree of branch and leaf pages; a small one lies within its parent's leaf.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

_PAGE: Final = struct.Struct("<QHHI")  # id, kind, number of elements, pages that follow
_META: Final = struct.Struct("<IIIIQQQQQ")  # magic, version, page size, flags, root, sequence, freelist, pages, txid
_MAGIC, _VERSION = 0xED0CDAED, 2
_BRANCH, _LEAF = 1, 2
_BRANCH_ELEMENT: Final = struct.Struct("<IIQ")  # position, key size, page
_LEAF_ELEMENT: Final = struct.Struct("<IIII")  # flags, position, key size, value size
_BUCKET: Final = struct.Struct("<QQ")  # root page (0: inline), sequence
_IS_BUCKET: Final = 1
_DEEPEST: Final = 64
_FNV_OFFSET, _FNV_PRIME, _64_BITS = 0xCBF29CE484222325, 0x100000001B3, 2**64 - 1


class Damaged(Exception):
    """The file is no bolt database, or is damaged."""


class Bucket:
    """A bucket: values and buckets by key."""

    def __init__(self, content: bytes, size: int, root: int, inline: bytes = b"") -> None:
        self._content, self._size, self._root, self._inline = content, size, root, inline

    def values(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield the keys and values, in order. Raises Damaged."""
        return ((key, value) for key, value, is_bucket in self._items() if not is_bucket)

    def buckets(self) -> Iterator[tuple[bytes, Bucket]]:
        """Yield the keys and buckets, in order. Raises Damaged."""
        return ((key, self._inner(value)) for key, value, is_bucket in self._items() if is_bucket)

    def bucket(self, *path: bytes) -> Bucket | None:
        """Return the bucket at a path of keys. Raises Damaged."""
        found: Bucket | None = self
        for wanted in path:
            if found is not None:
                found = next((bucket for key, bucket in found.buckets() if key == wanted), None)
        return found

    def value(self, wanted: bytes) -> bytes:
        """Return a value; b"" if there is none. Raises Damaged."""
        return next((value for key, value in self.values() if key == wanted), b"")

    def _inner(self, value: bytes) -> Bucket:
        if len(value) < _BUCKET.size:
            raise Damaged("a bucket is cut off")
        root, _sequence = _BUCKET.unpack_from(value)
        return Bucket(self._content, self._size, root, value[_BUCKET.size :])

    def _items(self) -> Iterator[tuple[bytes, bytes, bool]]:
        try:
            page = self._page(self._root) if self._root else self._inline
            yield from self._walk(page, 0, set())
        except (struct.error, OverflowError) as error:
            raise Damaged(f"a page is cut off: {error}") from error

    def _walk(self, page: bytes, depth: int, seen: set[int]) -> Iterator[tuple[bytes, bytes, bool]]:
        _id, kind, count, _overflow = _PAGE.unpack_from(page)
        if depth > _DEEPEST:
            raise Damaged("pages refer to each other in a circle")
        for number in range(count):
            if kind == _BRANCH:
                child = _BRANCH_ELEMENT.unpack_from(page, _PAGE.size + number * _BRANCH_ELEMENT.size)[2]
                if child in seen:
                    raise Damaged("a page is in the tree twice")
                seen.add(child)
                yield from self._walk(self._page(child), depth + 1, seen)
            elif kind == _LEAF:
                at = _PAGE.size + number * _LEAF_ELEMENT.size
                flags, position, key_size, value_size = _LEAF_ELEMENT.unpack_from(page, at)
                begin = at + position
                end = begin + key_size + value_size
                if end > len(page):
                    raise Damaged("an element is cut off")
                yield page[begin : begin + key_size], page[begin + key_size : end], bool(flags & _IS_BUCKET)
            else:
                raise Damaged(f"a page is of kind {kind}")

    def _page(self, number: int) -> bytes:
        at = number * self._size
        overflow = _PAGE.unpack_from(self._content, at)[3]
        return self._content[at : at + (overflow + 1) * self._size]


def state(content: bytes) -> tuple[int, int, int]:
    """Return transaction, page size and root page of the database's latest state. Raises Damaged."""
    found = []
    sizes = [4096, *(1 << bits for bits in range(9, 17))]
    for at in (0, *sizes):
        if len(content) < at + _PAGE.size + _META.size + 8:
            continue
        fields = content[at + _PAGE.size : at + _PAGE.size + _META.size]
        magic, version, size, _flags, root, _sequence, _freelist, _pages, txid = _META.unpack(fields)
        (checksum,) = struct.unpack_from("<Q", content, at + _PAGE.size + _META.size)
        if (magic, version) == (_MAGIC, _VERSION) and checksum == _fnv(fields) and at in (0, size):
            found.append((txid, size, root))
    if not found:
        raise Damaged("it is no bolt database")
    return max(found)


def open_database(content: bytes) -> Bucket:
    """Return the root bucket of a database. Raises Damaged."""
    _txid, size, root = state(content)
    return Bucket(content, size, root)


def _fnv(content: bytes) -> int:
    """FNV-1a of 64 bits."""
    found = _FNV_OFFSET
    for byte in content:
        found = (found ^ byte) * _FNV_PRIME & _64_BITS
    return found
