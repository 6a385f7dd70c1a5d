"""Damaged and evil images out of real ones, by a seeded generator: each change knows the format that it breaks."""

from __future__ import annotations

import gzip
import io
import json
import random
import struct
import tarfile
from collections.abc import Callable
from typing import Any

import zstandard

from tests.images import OCI_LAYER, BuiltImage, build_image, build_index, digest, entry

Entries = list[tuple[tarfile.TarInfo, bytes]]
BLOCK = 512
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
CAPABILITY_3 = b"\1\0\0\3" + CAPABILITY[4:]  # with the root of a user namespace behind it


def acl(*entries: tuple[int, int, int], version: int = 2) -> bytes:
    """A POSIX access control list: tags (1 owner, 2 user, 4 group, 8 named group, 16 mask, 32 others), rights, ids."""
    return struct.pack("<I", version) + b"".join(struct.pack("<HHI", *one) for one in entries)


ACLS = (
    acl((1, 7, 0), (2, 5, 1000), (4, 4, 0), (16, 5, 0), (32, 1, 0)),
    acl((1, 6, 0), (4, 4, 7), (8, 2, 8), (8, 3, 9), (16, 7, 0), (32, 0, 0)),
    acl((1, 7, 0), (4, 5, 0), (16, 1, 0), (32, 4, 0)),
    acl((1, 7, 0), (4, 5, 0), (32, 4, 0)),  # no more than a mode
    acl((1, 7, 0), (2, 5, 1000), (4, 4, 0), (32, 1, 0)),  # a named user without a mask
    acl((1, 7, 0), (4, 4, 0), (2, 5, 1000), (16, 5, 0), (32, 1, 0)),
    acl((1, 8, 0), (4, 5, 0), (32, 4, 0)), acl((1, 7, 0), (1, 7, 0), (4, 5, 0), (32, 4, 0)),
    acl((1, 7, 0), (2, 5, 0xFFFF_FFFF), (4, 4, 0), (16, 5, 0), (32, 1, 0)),
    acl((1, 7, 0), (64, 5, 1000), (4, 4, 0), (16, 5, 0), (32, 1, 0)),
    acl((1, 7, 0), (4, 5, 0), (32, 4, 0), version=1), acl(), acl() + b"odd", b"\2",
)  # fmt: skip
ATTRIBUTES = (
    *((key, value) for key in ("system.posix_acl_access", "system.posix_acl_default") for value in ACLS),
    *(("security.capability", value) for value in (
        CAPABILITY, CAPABILITY_3 + bytes(4), CAPABILITY_3 + b"\xe8\3\0\0", CAPABILITY_3 + b"\xff" * 4, CAPABILITY_3,
        CAPABILITY + bytes(4), b"\0\0\0\2" + CAPABILITY[4:], b"\2" + CAPABILITY[1:],
    )),
    *((f"{prefix}.{name}", b"it") for prefix in ("user", "trusted", "security", "system") for name in ("x", " ", "")),
    ("com.apple.x", b"value"),
)  # fmt: skip


def base_entries() -> Entries:
    """A layer with something of everything."""
    capability = CAPABILITY.decode("latin-1")
    return [
        entry("bin/"),
        entry("bin/tool", b"#!/bin/sh\n" * 40, mode=0o4755),
        entry("bin/again", type=tarfile.LNKTYPE, linkname="bin/tool"),
        entry("bin/ping", b"x" * 700, xattrs={"security.capability": capability, "user.note": "hi"}),
        entry("lib", type=tarfile.SYMTYPE, linkname="usr/lib"),
        entry("usr/lib/deep/er/file", b"y" * 3000),
        entry("etc/"),
        entry("etc/passwd", b"root:x:0:0::/:/bin/sh\n", uid=7, gid=8),
        entry("etc/.wh.shadow", b""),
        entry("var/.wh..wh..opq", b""),
        entry("dev/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        entry("run/pipe", type=tarfile.FIFOTYPE),
        entry("n" * 120 + "/long", b"z"),
        entry("tmp/", mode=0o1777),
    ]


class Evil:
    """A source of evil. `targets` are absolute paths that nothing may reach."""

    def __init__(self, seed: int, targets: list[str]) -> None:
        self._chance = random.Random(seed)
        self._targets = targets

    def layer_image(self) -> BuiltImage:
        """An image whose documents and digests are right, of one or two layers that are not."""
        tars = [self.tar() for _ in range(self._chance.randint(1, 2))]
        stored = [self._stored(tar) for tar in tars]
        diff_ids = [digest(tar) for tar in tars]
        return build_image(stored, compressed=False, layer_type=OCI_LAYER + "+gzip", diff_ids=diff_ids)

    def document_image(self) -> BuiltImage:
        """An image with a manifest, index or configuration that is not right, under the digest that it has."""
        image = build_image([_written(base_entries()[:2])])
        if self._chance.random() < 0.3:
            index = build_index([(image, {"os": "linux", "architecture": "amd64"})])
            raw = self._document(index.manifest)
            return BuiltImage(raw, index.media_type, {}, "", [image])
        if self._chance.random() < 0.5:
            return BuiltImage(self._document(image.manifest), image.media_type, image.blobs, image.id)
        config = self._document(image.blobs[image.id])
        manifest = json.loads(image.manifest)
        manifest["config"].update(digest=digest(config), size=len(config))
        blobs = {**image.blobs, digest(config): config}
        return BuiltImage(json.dumps(manifest).encode(), image.media_type, blobs, digest(config))

    # --- layers

    def tar(self) -> bytes:
        """A layer that is not right."""
        entries = base_entries()
        for _ in range(self._chance.randint(1, 4)):
            self._chance.choice(self._entry_changes())(entries)
        form = self._chance.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))
        tar = _written(entries, form)
        for _ in range(self._chance.choice((0, 0, 1, 2))):
            tar = self._chance.choice(self._byte_changes())(tar)
        return tar

    def _entry_changes(self) -> list[Callable[[Entries], None]]:
        return [
            self._rename, self._rename, self._relink, self._relink, self._through_a_link, self._through_a_link,
            self._extend, self._extend, self._own, self._repeat, self._white_out, self._shuffle, self._device,
            self._retype, self._attribute, self._attribute,
        ]  # fmt: skip

    def _one(self, entries: Entries) -> tarfile.TarInfo:
        return self._chance.choice(entries)[0]

    def _path(self) -> str:
        target = self._chance.choice(self._targets)
        return self._chance.choice(
            (target, target.lstrip("/"), "../" * self._chance.randint(1, 12) + target.lstrip("/"), f"bin/../..{target}",
             f"././/{target}", "..", ".", "", "/", "bin", "bin/tool/x", "lib/x", "usr", "a/" * 300, "x" * 300,
             "bin/tool\udc80", "new\nline", f"proc/self/root{target}", f"/proc/self/cwd/../..{target}")
        )  # fmt: skip

    def _rename(self, entries: Entries) -> None:
        self._one(entries).name = self._path()

    def _relink(self, entries: Entries) -> None:
        info = self._one(entries)
        info.type = self._chance.choice((tarfile.SYMTYPE, tarfile.LNKTYPE))
        info.linkname = self._path()

    def _through_a_link(self, entries: Entries) -> None:
        link = self._chance.choice(("way", "bin", "lib", "etc", "tmp", "usr/lib"))
        target = self._chance.choice(self._targets)
        to = self._chance.choice((target, target.rpartition("/")[0] or "/", "/", "..", ".", link, "/proc/self/root"))
        below = f"{link}/{self._chance.choice((target.rpartition('/')[2], 'x', '.wh.x', '.wh..wh..opq', '../../x'))}"
        at = self._chance.randrange(len(entries))
        kind = self._chance.choice(({}, {"type": tarfile.LNKTYPE, "linkname": self._path()}, {"mode": 0o6777}))
        entries[at:at] = [entry(link, type=tarfile.SYMTYPE, linkname=to), entry(below, b"evil", **kind)]

    def _retype(self, entries: Entries) -> None:
        self._one(entries).type = self._chance.choice((*(b"%d" % n for n in range(8)), b"S", b"V", b"Z", b"\0", b"D"))

    def _extend(self, entries: Entries) -> None:
        headers = (
            ("path", self._path()), ("linkpath", self._path()),
            ("size", self._chance.choice(("0", "99999", "-1", "9" * 30))),
            ("uid", "4294967295"), ("gid", "x"), ("mtime", self._chance.choice(("-1.5", "9" * 25, "nan", "1e9"))),
            ("SCHILY.xattr.trusted.overlay.redirect", "/etc"), ("SCHILY.xattr.trusted.overlay.opaque", "y"),
            ("SCHILY.xattr.user.overlay.whiteout", "y"), ("SCHILY.xattr.security.capability", "short"),
            ("SCHILY.xattr." + "k" * 300, "v"), ("SCHILY.xattr.user.big", "v" * 70_000), ("SCHILY.xattr.", "v"),
            ("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", str(1 << 62)),
            ("GNU.sparse.map", self._chance.choice(("0,10,5,10", f"{1 << 60},1", "1,2,3", "0,0"))),
            ("GNU.sparse.size", "100"), ("GNU.sparse.name", self._path()),
        )  # fmt: skip
        info = self._one(entries)
        info.pax_headers = {**info.pax_headers, **dict(self._chance.sample(headers, self._chance.randint(1, 3)))}

    def _attribute(self, entries: Entries) -> None:
        """Attributes of directories as well: what is made in one afterwards must not have them."""
        place = self._chance.choice(("etc/", "bin/", "tmp/", "usr/", "usr/lib/", "run/"))
        chosen = [self._one(entries), self._one(entries), entry(place, mode=self._chance.choice((0, 0o755, 0o2775)))[0]]
        entries.insert(self._chance.randrange(len(entries)), (chosen[-1], b""))
        for info in chosen[self._chance.randrange(3) :]:
            for key, value in self._chance.sample(ATTRIBUTES, self._chance.randint(1, 2)):
                text = value.decode("utf-8", "surrogateescape")
                info.pax_headers = {**info.pax_headers, f"SCHILY.xattr.{key}": text}

    def _own(self, entries: Entries) -> None:
        info = self._one(entries)
        info.uid, info.gid = (self._chance.choice((0, 65534, 1 << 31, (1 << 32) - 2, (1 << 32) - 1)) for _ in "ug")
        info.mode = self._chance.choice((0, 0o7777, 0o6777, 0o1000, 0o4000))
        info.mtime = self._chance.choice((0, 1 << 33, -(1 << 31)))

    def _repeat(self, entries: Entries) -> None:
        entries.insert(self._chance.randrange(len(entries)), self._chance.choice(entries))

    def _white_out(self, entries: Entries) -> None:
        name = self._chance.choice(("bin", "..", ".", "", "wh..opq", ".wh.x", "tmp", "lib", "etc/passwd"))
        place = self._chance.choice(("", "bin/", "lib/", "../", "bin/tool/"))
        entries.insert(self._chance.randrange(len(entries)), entry(f"{place}.wh.{name}", b""))

    def _shuffle(self, entries: Entries) -> None:
        self._chance.shuffle(entries)

    def _device(self, entries: Entries) -> None:
        info = self._one(entries)
        info.type = self._chance.choice((tarfile.CHRTYPE, tarfile.BLKTYPE))
        info.devmajor, info.devminor = self._chance.choice(((0, 0), (8, 0), (1, 1), (4095, 1 << 19)))

    def _byte_changes(self) -> list[Callable[[bytes], bytes]]:
        return [self._cut, self._flip, self._number, self._number, self._lose_a_block, self._double_a_block]

    def _cut(self, tar: bytes) -> bytes:
        return tar[: self._chance.randrange(len(tar))]

    def _flip(self, tar: bytes) -> bytes:
        changed = bytearray(tar)
        changed[self._chance.randrange(len(tar))] ^= 1 << self._chance.randrange(8)
        return bytes(changed)

    def _number(self, tar: bytes) -> bytes:
        """Another number in a header, whose checksum is made right again."""
        headers = [at for at in range(0, len(tar), BLOCK) if tar[at + 257 : at + 262] == b"ustar"]
        if not headers:
            return tar
        at = self._chance.choice(headers)
        changed = bytearray(tar)
        start, length = self._chance.choice(((100, 8), (108, 8), (124, 12), (136, 12), (329, 8), (337, 8), (156, 1)))
        changed[at + start : at + start + length] = self._chance.choice(
            (b"\xff" * length, b"\x80" + b"\x7f" * (length - 1), *(one * length for one in (b"7", b" ", b"9", b"\0")))
        )
        changed[at + 148 : at + 156] = b" " * 8
        changed[at + 148 : at + 156] = b"%06o\0 " % sum(changed[at : at + BLOCK])
        return bytes(changed)

    def _lose_a_block(self, tar: bytes) -> bytes:
        at = self._chance.randrange(0, len(tar), BLOCK)
        return tar[:at] + tar[at + BLOCK :]

    def _double_a_block(self, tar: bytes) -> bytes:
        at = self._chance.randrange(0, len(tar), BLOCK)
        return tar[: at + BLOCK] + tar[at:]

    def _stored(self, tar: bytes) -> bytes:
        kind = self._chance.randrange(20)
        if kind == 0:
            return tar
        if kind == 1:
            return zstandard.compress(tar)
        stored = gzip.compress(tar, 1, mtime=0)
        if kind == 2:
            return self._flip(stored)
        if kind == 3:
            return self._cut(stored)
        if kind == 4:
            return self._flip(zstandard.compress(tar))
        return stored

    # --- documents

    def _document(self, raw: bytes) -> bytes:
        document = json.loads(raw)
        for _ in range(self._chance.randint(1, 3)):
            self._spoil(document)
        if self._chance.random() < 0.1:
            return self._flip(json.dumps(document).encode())
        return json.dumps(document).encode()

    def _spoil(self, value: Any) -> None:
        """Change one member somewhere below `value`."""
        while True:
            keys = list(value) if isinstance(value, dict) else list(range(len(value)))
            if not keys:
                return
            key = self._chance.choice(keys)
            if isinstance(value[key], dict | list) and value[key] and self._chance.random() < 0.7:
                value = value[key]
                continue
            break
        deed = self._chance.randrange(4)
        if deed == 0:
            del value[key]
        elif deed == 1 and isinstance(value, list):
            value.append(value[key])
        else:
            value[key] = self._chance.choice(
                (None, 0, -1, 1 << 70, 1.5, True, "", "x" * 5000, [], {}, [[]], {"": {}}, "sha256:" + "G" * 64,
                 "sha256:" + "0" * 64, "../../etc/passwd", "\0", "sha512:" + "0" * 128,
                 "application/vnd.oci.empty.v1+json")
            )  # fmt: skip


def _written(entries: Entries, form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, errors="surrogateescape") as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content) if info.size <= len(content) else None)
    return buffer.getvalue()
