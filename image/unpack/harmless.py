"""Checks archive entries before they are made: names must stay inside, and numbers must be valid for the kernel."""

from __future__ import annotations

from image.unpack.overlay import RESERVED_XATTRS
from image.unpack.tar_header import CHAR_DEVICE, Entry, TarError
from linux.tables import HIGHEST_ID

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
AUFS = b".wh..wh."  # aufs' own bookkeeping, which is ignored
AUFS_LINKS = b".wh..wh.plnk"  # except that hard links lead to files in it
_DEPTH_LIMIT = 512  # components per name
_MAJOR_LIMIT, _MINOR_LIMIT = 0xFFF, 0xF_FFFF  # the kernel truncates larger device numbers


def make_harmless(entry: Entry) -> None:
    """Remove from an entry what would control the overlay, and its SELinux label.

    Raises TarError for numbers that the kernel would truncate.
    """
    if not (0 <= entry.uid <= HIGHEST_ID and 0 <= entry.gid <= HIGHEST_ID):
        entry.uid, entry.gid = _id(entry.uid), _id(entry.gid)
    if entry.major > _MAJOR_LIMIT or entry.minor > _MINOR_LIMIT:
        raise TarError(f"device {entry.major}:{entry.minor} is out of range")
    if entry.xattrs:
        entry.xattrs = {key: value for key, value in entry.xattrs.items() if not key.startswith(RESERVED_XATTRS)}


def _id(number: int) -> int:
    """Normalise a user or group id. Negative ones come from signed 32-bit numbers: macOS' nobody is -2."""
    unsigned = number + (1 << 32) if -(1 << 31) <= number < 0 else number
    if not 0 <= unsigned <= HIGHEST_ID:
        raise TarError(f"owner {number} is out of range")
    return unsigned


def is_whiteout_entry(entry: Entry) -> bool:
    """Return whether it is overlayfs' own whiteout, which hides like a `.wh.` entry."""
    return entry.kind == CHAR_DEVICE and (entry.major, entry.minor) == (0, 0)


def is_bookkeeping(parent_path: bytes) -> bool:
    """Return whether the directory is aufs' bookkeeping and no hard link needs it."""
    if AUFS not in parent_path:
        return False
    first, *others = parent_path.split(b"/")
    return (first != AUFS_LINKS and first.startswith(AUFS)) or any(name.startswith(AUFS) for name in others)


def normalised(name: bytes) -> bytes:
    """Return `name` as a path below the root, without leading slash, empty, "." or ".." components; b"" is the root.

    Raises TarError if it is no path.
    """
    if b"\0" in name:
        raise TarError("a NUL in a name")
    components: list[bytes] = []
    for component in name.split(b"/"):
        if component == b"..":
            del components[-1:]
        elif component not in (b"", b"."):
            components.append(component)
    if len(components) > _DEPTH_LIMIT:
        raise TarError(f"more than {_DEPTH_LIMIT} components in a name")
    return b"/".join(components)
