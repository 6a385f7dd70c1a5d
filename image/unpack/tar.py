"""A streaming tar reader: ustar, pax and GNU, all forms of sparse files, names as bytes. Standard library only.

Sizes, counts and numbers are checked before use. Names are not judged; the caller must do that.
"""

from __future__ import annotations

from collections.abc import Iterator

from image.unpack.pax import SPARSE_KEYS, apply_pax, decimal, parse_pax
from image.unpack.sparse import SPARSE_LIMIT, check_segments, pairs, segment_numbers
from image.unpack.tar_header import BLOCK, DIRECTORY, REGULAR, Entry, TarError, number, parse_header

EXTENSION_LIMIT = 1 << 20  # bytes of an entry's pax headers (with global ones) and GNU long names

_CONTIGUOUS = b"7"
_OLD_REGULAR = b"\0"
_GNU_LONG_NAME = b"L"
_GNU_LONG_LINK = b"K"
_GNU_SPARSE = b"S"
_PAX = b"x"
_PAX_GLOBAL = b"g"
_ZEROS = bytes(BLOCK)


class ByteStream:
    """Reads exact numbers of bytes from an iterator of chunks."""

    __slots__ = ("_before", "_chunk", "_chunks", "_offset")

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = memoryview(b"")
        self._offset = 0
        self._before = 0  # bytes in earlier chunks

    @property
    def position(self) -> int:
        """Number of bytes read so far."""
        return self._before + self._offset

    def read(self, size: int) -> bytes:
        """Return exactly `size` bytes; fewer only at the end of the stream."""
        end = self._offset + size
        if end <= len(self._chunk):
            piece = bytes(self._chunk[self._offset : end])
            self._offset = end
            return piece
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[memoryview]:
        """Yield `size` bytes as views into the chunks; fewer only at the end of the stream."""
        while size > 0:
            if self._offset == len(self._chunk):
                self._before += self._offset
                self._chunk = memoryview(next(self._chunks, b""))
                self._offset = 0
                if not self._chunk:
                    return
            end = min(self._offset + size, len(self._chunk))
            piece = self._chunk[self._offset : end]
            size -= end - self._offset
            self._offset = end
            yield piece

    def drain(self) -> None:
        """Read to the end, so that the producer of the chunks processes everything."""
        self._before += len(self._chunk) + sum(map(len, self._chunks))
        self._chunk, self._offset = memoryview(b""), 0


class TarReader:
    """Iterates over the entries of a stream. Unread content of an entry is skipped."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._unread = 0  # bytes of content of the current entry
        self._padding = 0
        self._globals: dict[bytes, bytes] = {}
        self._kept = 0  # bytes of the global records
        self._room = EXTENSION_LIMIT  # bytes that the next entry's headers may still have

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self._next()) is not None:
            yield entry

    @property
    def position(self) -> int:
        """Position in the stream of the content to be read next."""
        return self._stream.position

    def content(self, size: int) -> Iterator[memoryview]:
        """Yield the next `size` bytes of the current entry's stored content. Raises TarError if the stream ends."""
        if size > self._unread:
            raise TarError("content ends early")
        for piece in self._stream.pieces(size):
            self._unread -= len(piece)
            size -= len(piece)
            yield piece
        if size:
            raise TarError("archive ends inside a file")

    def _next(self) -> Entry | None:
        for _ in self.content(self._unread):
            pass
        self._stream.read(self._padding)  # some writers omit it after the last file
        self._padding = 0
        self._room = EXTENSION_LIMIT - self._kept
        own: list[bytes] = []
        long_name = long_link = None
        while True:
            header = self._stream.read(BLOCK)
            if not header or header == _ZEROS:
                self._end(header)
                return None
            entry = parse_header(header)
            kind = entry.kind
            if kind == _PAX:
                own.append(self._extension(entry))
            elif kind == _PAX_GLOBAL:
                self._globalise(self._extension(entry))
            elif kind == _GNU_LONG_NAME:
                long_name = self._extension(entry).rstrip(b"\0")
            elif kind == _GNU_LONG_LINK:
                long_link = self._extension(entry).rstrip(b"\0")
            else:
                break
        if long_name is not None:
            entry.name = long_name
        if long_link is not None:
            entry.link = long_link
        records = dict(self._globals)
        for header_records in own:
            parse_pax(header_records, records)
        if records:
            apply_pax(entry, records)
        self._locate_content(entry, header, records)
        return entry

    def _end(self, header: bytes) -> None:
        """Check the end: two blocks of zeros, or the end of the stream at a block boundary."""
        if header and self._stream.read(BLOCK) not in (_ZEROS, b""):
            raise TarError("a block of zeros inside the archive")

    def _globalise(self, header: bytes) -> None:
        """Keep a global header's records. A replaced record does not count, so there may be many headers."""
        parse_pax(header, self._globals)
        self._kept = sum(len(key) + len(value) for key, value in self._globals.items())
        self._room = EXTENSION_LIMIT - self._kept
        if self._room < 0:
            raise TarError(f"global headers of more than {EXTENSION_LIMIT} bytes")

    def _exactly(self, size: int) -> bytes:
        piece = self._stream.read(size)
        if len(piece) < size:
            raise TarError("archive ends early")
        return piece

    def _extension(self, entry: Entry) -> bytes:
        self._room -= entry.size
        if self._room < 0:
            raise TarError(f"extended headers of more than {EXTENSION_LIMIT} bytes")
        return self._exactly(entry.size + -entry.size % BLOCK)[: entry.size]

    def _locate_content(self, entry: Entry, header: bytes, records: dict[bytes, bytes]) -> None:
        if entry.kind in (_OLD_REGULAR, _CONTIGUOUS):
            entry.kind = REGULAR
        if entry.kind == REGULAR and entry.name.endswith(b"/"):
            entry.kind = DIRECTORY  # version 7 archives mark directories like this
            entry.stored = entry.size
        elif entry.kind in (REGULAR, _GNU_SPARSE):
            entry.stored = entry.size
        self._padding = -entry.stored % BLOCK
        self._unread = entry.stored
        if entry.kind == _GNU_SPARSE:
            entry.kind = REGULAR
            entry.size = number(header[483:495])
            self._gnu_segments(entry, header)
        elif entry.kind == REGULAR and any(key.startswith(SPARSE_KEYS) for key in records):
            self._pax_segments(entry, records)
        if entry.segments is not None:
            check_segments(entry)

    def _gnu_segments(self, entry: Entry, header: bytes) -> None:
        numbers = segment_numbers(header[386:482])
        extended = header[482]
        while extended:
            block = self._exactly(BLOCK)
            numbers += segment_numbers(block[:504])
            extended = block[504]
            if len(numbers) > 2 * SPARSE_LIMIT:
                raise TarError(f"sparse file of more than {SPARSE_LIMIT} segments")
        entry.segments = pairs(numbers)

    def _pax_segments(self, entry: Entry, records: dict[bytes, bytes]) -> None:
        entry.name = records.get(b"GNU.sparse.name", entry.name)
        size = records.get(b"GNU.sparse.realsize", records.get(b"GNU.sparse.size"))
        if records.get(b"GNU.sparse.major") == b"1":
            numbers = self._sparse_map_in_content()
            entry.stored = self._unread
        elif (listed := records.get(b"GNU.sparse.map")) is not None:
            numbers = [decimal(n) for n in listed.split(b",") if n]
        else:
            return
        if size is None:
            raise TarError("sparse file without its size")
        entry.size = decimal(size)
        entry.segments = pairs(numbers)

    def _sparse_map_in_content(self) -> list[int]:
        """Read the map of pax sparse format 1.0: lines of decimal numbers before the data, padded to a block."""
        text = b""
        wanted = 1
        while text.count(b"\n") < wanted:
            if len(text) >= EXTENSION_LIMIT:
                raise TarError("sparse map too long")
            text += b"".join(self.content(BLOCK))
            if wanted == 1 and b"\n" in text:
                wanted += 2 * decimal(text.partition(b"\n")[0])
        return [decimal(line) for line in text.split(b"\n")[1:wanted]]
