"""Parses pax extended headers: names, sizes, owners and times beyond ustar's limits, and extended attributes."""

from __future__ import annotations

from image.unpack.tar_header import Entry, TarError, bounded_time

SPARSE_KEYS = b"GNU.sparse."
_XATTR = b"SCHILY.xattr."
_XATTR_NAMES_LIMIT = 1 << 16  # bytes of a file's attribute names: the kernel's XATTR_LIST_MAX
_KEYS = (b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime")  # the pax records to read, beside those with a prefix
_PREFIXES = (_XATTR, SPARSE_KEYS)


def parse_pax(data: bytes, records: dict[bytes, bytes]) -> None:
    """Add the "<length> <key>=<value>\\n" records of a pax header. An empty value deletes the key."""
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        length = decimal(data[at:space]) if space > at else 0
        record = data[space + 1 : at + length]
        key, equals, value = record.partition(b"=")
        if space < 0 or at + length > len(data) or not equals or not value.endswith(b"\n") or not key:
            raise TarError("malformed pax record")
        value = value[:-1]
        at += length
        if key not in _KEYS and not key.startswith(_PREFIXES):
            continue
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):  # format 0.0 repeats them, one pair per segment
            records[b"GNU.sparse.map"] = records.get(b"GNU.sparse.map", b"") + value + b","
        elif value:
            records[key] = value
        else:
            records.pop(key, None)


def apply_pax(entry: Entry, records: dict[bytes, bytes]) -> None:
    entry.name = records.get(b"path", entry.name)
    entry.link = records.get(b"linkpath", entry.link)
    if (value := records.get(b"size")) is not None:
        entry.size = decimal(value)
    if (value := records.get(b"uid")) is not None:
        entry.uid = _signed_decimal(value)
    if (value := records.get(b"gid")) is not None:
        entry.gid = _signed_decimal(value)
    if (value := records.get(b"mtime")) is not None:
        entry.mtime = bounded_time(_pax_time(value))
    xattrs = {key[len(_XATTR) :]: value for key, value in records.items() if key.startswith(_XATTR)}
    if sum(map(len, xattrs)) + len(xattrs) > _XATTR_NAMES_LIMIT:
        raise TarError(f"extended attributes with names of more than {_XATTR_NAMES_LIMIT} bytes")
    if xattrs:
        entry.xattrs = xattrs


def _pax_time(text: bytes) -> int:
    """Convert decimal seconds, maybe negative or with a fraction, to nanoseconds."""
    whole, _, fraction = text.partition(b".")
    negative = whole.startswith(b"-")
    seconds = decimal(whole.removeprefix(b"-") or b"0")
    nanoseconds = seconds * 1_000_000_000 + (decimal(fraction[:9].ljust(9, b"0")) if fraction else 0)
    return -nanoseconds if negative else nanoseconds


def decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise TarError(f"{text[:32]!r} is not a decimal number")
    return int(text)


def _signed_decimal(text: bytes) -> int:
    return -decimal(text[1:]) if text.startswith(b"-") else decimal(text)
