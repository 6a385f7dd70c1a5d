"""Collects what a layer's directories get at its end.

Making an entry in one changes its time, and the entry would inherit its default access control list.
"""

from __future__ import annotations

from collections.abc import Iterator

from image.unpack.tar_header import TarError

IMPLIED = b"i"  # no entry described it
WHITED = b"w"  # whiteouts were made in it
BOTH = b"b"
ONLY_ROOT = IMPLIED  # followed by the root's path

_IMPLIED_LIMIT = 1 << 16
_MEMORY_LIMIT = 128 << 20  # bytes, approximately, for all names and their nodes
_REPORT_LIMIT = 16 << 20  # bytes of the paths to report
_NODE_COST = 230  # bytes per name, without the name and its first child
_CHILDREN_COST = 230


class _Node:
    __slots__ = ("acl", "children", "implied", "mtime", "whited")

    def __init__(self) -> None:
        self.children: dict[bytes, _Node] | None = None
        self.mtime: int | None = None
        self.acl = b""
        self.implied = False
        self.whited = False


class Directories:
    """Directories by path below the layer's root, which is b"". Raises TarError for too many."""

    def __init__(self) -> None:
        self._root = _Node()
        self._root.implied = True
        self._implied = 1
        self._taken = 0
        self._reported = 0  # bytes of the paths to report

    def describe(self, path: bytes, mtime: int, acl: bytes = b"") -> None:
        """Record that an entry describes the directory. `mtime` is in nanoseconds, `acl` its default list, if any."""
        self._taken += len(acl)
        node = self._node(path)
        node.mtime = mtime
        node.acl = acl or node.acl
        if node.implied:
            self._implied -= 1
            node.implied = False
            self._reported -= 0 if node.whited else len(path)

    def imply(self, path: bytes) -> None:
        """Record that the directory was made without an entry."""
        node = self._node(path)
        self._report(path, node)
        self._implied += not node.implied
        node.implied = True
        if self._implied > _IMPLIED_LIMIT:
            raise TarError(f"more than {_IMPLIED_LIMIT} directories have no entry of their own")

    def white(self, path: bytes) -> None:
        """Record that something of the lower layers was hidden in the directory."""
        node = self._node(path)
        self._report(path, node)
        node.whited = True

    def forget(self, path: bytes) -> None:
        """Record that the directory and its content were removed."""
        parent_path, _, name = path.rpartition(b"/")
        parent = self._find(parent_path)
        if parent is not None and parent.children is not None and (gone := parent.children.pop(name, None)) is not None:
            pending = [(len(path), name, gone)]
            while pending:
                length, name, node = pending.pop()
                self._implied -= node.implied
                self._reported -= length if node.implied or node.whited else 0
                self._taken -= _NODE_COST + len(name) + (_CHILDREN_COST if node.children is not None else 0)
                pending += ((length + 1 + len(below), below, child) for below, child in (node.children or {}).items())

    def __iter__(self) -> Iterator[tuple[bytes, int | None, bytes]]:
        """Yield each directory, with its time and its default access control list if an entry gave them."""
        return ((path, node.mtime, node.acl) for path, node in self._walk() if node.implied or node.mtime is not None)

    def unsettled(self) -> bytes:
        """Return what needs the lower layers, for `parse_unsettled`: directories implied or with whiteouts.

        Returns ONLY_ROOT if only the root has no entry.
        """
        said: list[bytes] = []
        for path, node in self._walk():
            if node.implied or node.whited:
                kind = BOTH if node.implied and node.whited else WHITED if node.whited else IMPLIED
                said.append(kind + path)
        return b"\0".join(said)

    def _walk(self) -> Iterator[tuple[bytes, _Node]]:
        yield b"", self._root
        pending = [(b"", iter((self._root.children or {}).items()))]
        while pending:
            prefix, children = pending[-1]
            name, node = next(children, (b"", None))
            if node is None:
                pending.pop()
                continue
            yield prefix + name, node
            if node.children:
                pending.append((prefix + name + b"/", iter(node.children.items())))

    def _report(self, path: bytes, node: _Node) -> None:
        if not node.implied and not node.whited:
            self._reported += len(path)
            if self._reported > _REPORT_LIMIT:
                raise TarError(f"directories without an entry take more than {_REPORT_LIMIT} bytes of paths")

    def _find(self, path: bytes) -> _Node | None:
        node: _Node | None = self._root
        for name in path.split(b"/") if path else ():
            if node is None:
                break
            node = (node.children or {}).get(name)
        return node

    def _node(self, path: bytes) -> _Node:
        node = self._root
        for name in path.split(b"/") if path else ():
            if node.children is None:
                node.children = {}
                self._taken += _CHILDREN_COST
            child = node.children.get(name)
            if child is None:
                child = node.children[name] = _Node()
                self._taken += _NODE_COST + len(name)
            node = child
        if self._taken > _MEMORY_LIMIT:
            raise TarError(f"the names of its directories take more than {_MEMORY_LIMIT} bytes of memory")
        return node


def parse_unsettled(said: bytes) -> tuple[list[bytes], list[bytes]]:
    """Parse the result of `Directories.unsettled`: the implied directories, and those with whiteouts.

    Raises TarError for a path that leads elsewhere: an archive may have taken over the worker that wrote it, and the
    one that reads it has the whole host below its root.
    """
    implied: list[bytes] = []
    whited: list[bytes] = []
    for item in said.split(b"\0") if said else ():
        kind, path = item[:1], item[1:]
        if path and not {b"", b".", b".."}.isdisjoint(path.split(b"/")):
            raise TarError("a path that no archive has among those left for when the layers below are known")
        if kind != WHITED:
            implied.append(path)
        if kind != IMPLIED:
            whited.append(path)
    return implied, whited
