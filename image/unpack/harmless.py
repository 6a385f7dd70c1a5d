"""What an archive's entry says, before anything is made of it: names that lead nowhere else, and numbers that the
kernel takes for what they are."""

from __future__ import annotations

from image.unpack.overlay import RESERVED_XATTRS
from image.unpack.tar_header import CHAR_DEVICE, Entry, TarError
from linux.tables import HIGHEST_ID

WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
AUFS = b".wh..wh."  # aufs' own bookkeeping, of no meaning here
AUFS_LINKS = b".wh..wh.plnk"  # but that hard links lead to files in it
_DEPTH_LIMIT = 512  # components of one name
_MAJOR_LIMIT, _MINOR_LIMIT = 0xFFF, 0xF_FFFF  # the kernel cuts larger numbers of devices: they would be others


def make_harmless(entry: Entry) -> None:
    """Take from an entry what would be an order to the overlay, and what others read in another way than it was meant.

    Raises TarError for numbers that the kernel would take for others.
    """
    if not (0 <= entry.uid <= HIGHEST_ID and 0 <= entry.gid <= HIGHEST_ID):
        entry.uid, entry.gid = _id(entry.uid), _id(entry.gid)
    if entry.major > _MAJOR_LIMIT or entry.minor > _MINOR_LIMIT:
        raise TarError(f"device {entry.major}:{entry.minor} is out of range")
    if entry.xattrs:
        entry.xattrs = {key: value for key, value in entry.xattrs.items() if not key.startswith(RESERVED_XATTRS)}


def _id(number: int) -> int:
    """A user or group. A negative one is what a signed 32 bit number was: macOS' nobody is -2."""
    unsigned = number + (1 << 32) if -(1 << 31) <= number < 0 else number
    if not 0 <= unsigned <= HIGHEST_ID:
        raise TarError(f"owner {number} is out of range")
    return unsigned


def is_whiteout_entry(entry: Entry) -> bool:
    """Whether it is overlayfs' own whiteout, which hides as a `.wh.` entry does."""
    return entry.kind == CHAR_DEVICE and (entry.major, entry.minor) == (0, 0)


def is_bookkeeping(parent_path: bytes) -> bool:
    """Whether what is in the directory is of aufs' own, and not wanted by hard links."""
    if AUFS not in parent_path:
        return False
    first, *others = parent_path.split(b"/")
    return (first != AUFS_LINKS and first.startswith(AUFS)) or any(name.startswith(AUFS) for name in others)


def normalised(name: bytes) -> bytes:
    """`name` as a path below the root: no leading slash, no empty, "." or ".." component; b"" is the root itself.

    Raises TarError for what is no path at all.
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
