"""What layers come to when they are mounted one above the other, and what real archives have in them that is odd."""

from __future__ import annotations

import os
import stat
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from image.settings import LAYER_KINDS, ImageSettings
from image.store import ImageStore
from tests.images import build_image, entry, layer, write_layout

NO_GHOSTS = pytest.mark.trial(
    "ghosts", "A whiteout hides what the layers below have under its name, and leaves no name where they have nothing."
)
OPAQUE_ROOT = pytest.mark.trial("opaque-root", "An opaque whiteout in a layer's root hides all layers below it.")
INERT = pytest.mark.trial(
    "overlay-attributes", "Attributes of overlayfs in an archive mean nothing: the layer is unpacked without them."
)
ODD_TARS = pytest.mark.trial(
    "odd-tars",
    "What old and foreign tar programs write is unpacked as containerd does, or refused by the entry's name.",
)
BYTES = pytest.mark.trial("names-are-bytes", "Names in an archive are bytes, whatever their encoding, at every place.")


@pytest_asyncio.fixture(params=LAYER_KINDS[1:])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ImageStore]:
    settings = ImageSettings(image_layers=request.param)
    opened = await ImageStore.open(tmp_path / "image", tmp_path / "registries.conf", settings)
    yield opened
    await opened.close()


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True)


async def unpacked(store: ImageStore, tmp_path: Path, *tars: bytes) -> list[Path]:
    """The directories to mount for an image of these layers, topmost first. What is recorded of them is right."""
    layout = write_layout(tmp_path / f"layout{len(store.images())}", {"": build_image(tars)})
    (image,) = await store.import_archive(layout)
    (verdict,) = [verdict for verdict in await store.verify() if verdict.id == image.id]
    assert verdict.problems == ()
    return store.layers(image)


@contextmanager
def mounted(layers: list[Path], tmp_path: Path) -> Iterator[Path]:
    """As a container has them: below a writable layer."""
    place = tmp_path / "mounted"
    for name in ("upper", "work", "merged"):
        (place / name).mkdir(parents=True)
    options = f"lowerdir={':'.join(map(str, layers))},upperdir={place}/upper,workdir={place}/work"
    run("mount", "-t", "overlay", "overlay", "-o", options, place / "merged")
    try:
        yield place / "merged"
    finally:
        run("umount", place / "merged")
        run("rm", "-r", place)


def seen(root: Path) -> set[str]:
    """Every name that is listed below `root`; each has to be there."""
    found = set()
    for here, directories, files in os.walk(root):
        for name in (*directories, *files):
            os.lstat(os.path.join(here, name))
            found.add(os.path.relpath(os.path.join(here, name), root))
    return found


def link(name: str, to: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.SYMTYPE, linkname=to)


def whiteout(name: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, type=tarfile.CHRTYPE, devmajor=0, devminor=0)


LAYERS = {
    "nothing below": ([[entry("x/"), entry("x/keep", b""), entry("x/.wh.ghost", b"")]], "x x/keep"),
    "nothing below, in the root": ([[entry(".wh.ghost", b""), entry("keep", b"")]], "keep"),
    "by device": ([[entry("x/"), entry("x/keep", b""), whiteout("x/ghost")]], "x x/keep"),
    "by device, of something": ([[entry("x/a", b""), entry("x/b", b"")], [whiteout("x/a")]], "x x/b"),
    "by device, of its own": ([[entry("x/a", b""), entry("x/b", b"")], [entry("x/a", b"2"), whiteout("x/a")]], "x x/b"),
    "in a directory of one layer only": ([[entry("a", b"")], [entry("x/"), entry("x/.wh.ghost", b"")]], "a x"),
    "in a directory that nobody has": ([[entry("a", b"")], [entry("x/y/.wh.ghost", b"")]], "a"),
    "opaque, where nobody has it": ([[entry("a", b"")], [entry("x/y/.wh..wh..opq", b"")]], "a"),
    "made for it, beside others": ([[entry("a", b"")], [entry("x/y/.wh.ghost", b""), entry("x/z", b"")]], "a x x/z"),
    "in what is a file below": ([[entry("x", b"")], [entry("x/.wh.ghost", b"")]], "x"),
    "of nothing, beside something": (
        [[entry("x/old", b""), entry("x/keep", b"")], [entry("x/.wh.old", b""), entry("x/.wh.ghost", b"")]],
        "x x/keep",
    ),
    "in a directory that was hidden": (
        [[entry("x/a", b"")], [entry(".wh.x", b"")], [entry("x/"), entry("x/.wh.a", b""), entry("x/new", b"")]],
        "x x/new",
    ),
    "in one that hides itself": ([[entry("x/a", b"")], [entry("x/.wh..wh..opq", b""), entry("x/.wh.a", b"")]], "x"),
    "below one that hides": (
        [[entry("x/y/a", b"")], [entry("x/.wh..wh..opq", b""), entry("x/y/"), entry("x/y/.wh.a", b"")]],
        "x x/y",
    ),
    "two layers below one that hides": (
        [
            [entry("x/y/z/a", b"")],
            [entry("x/"), entry("x/.wh..wh..opq", b""), entry("x/y/"), entry("x/y/b", b"")],
            [entry("x/y/z/"), entry("x/y/z/.wh.a", b""), entry("x/y/z/c", b"")],
        ],
        "x x/y x/y/b x/y/z x/y/z/c",
    ),
    "through a symbolic link": (
        [[entry("a", b"")], [entry("usr/lib/"), link("lib", "usr/lib"), entry("lib/.wh.g", b"")]],
        "a lib usr usr/lib",
    ),
    "in a directory that then is replaced": (
        [[entry("a", b"")], [entry("x/.wh.g", b""), entry("x", b"file"), entry("y/.wh.g", b""), entry("y/f", b"")]],
        "a x y y/f",
    ),
    "in a directory that a layer above has": (
        [[entry("a", b"")], [entry("x/"), entry("x/.wh.g", b"")], [entry("x/top", b"")]],
        "a x x/top",
    ),
}  # fmt: skip
ROOTS = {
    "all below": (
        [[entry("x/old", b""), entry("gone", b"")], [entry(".wh..wh..opq", b""), entry("x/new", b"")]],
        "x x/new",
    ),
    "not above": ([[entry("a", b"")], [entry(".wh..wh..opq", b""), entry("b", b"")], [entry("c", b"")]], "b c"),
    "twice": ([[entry("a", b"")], [entry(".wh..wh..opq", b"")], [entry("b", b""), entry(".wh..wh..opq", b"")]], "b"),
    "by another name": ([[entry("a", b"")], [entry("./.wh..wh..opq", b""), entry(".wh.g", b""), entry("b", b"")]], "b"),
    "the lowest": ([[entry(".wh..wh..opq", b""), entry("a", b"")], [entry("b", b"")]], "a b"),
    "not what a layer above hides in it": (
        [
            [entry("x/a", b"")],
            [entry(".wh..wh..opq", b""), entry("x/b", b"")],
            [entry("x/.wh.a", b""), entry("x/c", b"")],
        ],
        "x x/b x/c",
    ),
}  # fmt: skip


async def shown(store: ImageStore, tmp_path: Path, tars: list[bytes]) -> set[str]:
    """What a container sees of an image, having copied and removed all of it."""
    layers = await unpacked(store, tmp_path, *tars)
    with mounted(layers, tmp_path) as merged:
        found = seen(merged)
        run("cp", "-r", merged, tmp_path / "copy")
        run("rm", "-r", tmp_path / "copy", *merged.iterdir())
    if len(layers) == 1:  # which an image that is a volume is mounted from as it is
        assert seen(layers[0]) == found
    return found


@NO_GHOSTS
async def test_whiteouts_hide_and_leave_nothing(store: ImageStore, tmp_path: Path) -> None:
    for name, (layers, wanted) in LAYERS.items():
        assert await shown(store, tmp_path, [layer(*entries) for entries in layers]) == set(wanted.split()), name


@OPAQUE_ROOT
async def test_an_opaque_root_hides_all_below(store: ImageStore, tmp_path: Path) -> None:
    for name, (layers, wanted) in ROOTS.items():
        assert await shown(store, tmp_path, [layer(*entries) for entries in layers]) == set(wanted.split()), name


@NO_GHOSTS
async def test_a_layer_of_two_images_has_what_each_needs(store: ImageStore, tmp_path: Path) -> None:
    """The same archive over a layer that has what it hides, and over one that has not."""
    hiding = layer(entry("x/"), entry("x/.wh.a", b""), entry("x/new", b""))
    for below, wanted in ((layer(entry("x/a", b"")), {"x", "x/new"}), (layer(entry("b", b"")), {"b", "x", "x/new"})):
        with mounted(await unpacked(store, tmp_path, below, hiding), tmp_path) as merged:
            assert seen(merged) == wanted


async def test_what_is_removed_leaves_times_and_sizes_as_they_were(store: ImageStore, tmp_path: Path) -> None:
    (top, _) = await unpacked(
        store, tmp_path, layer(entry("a", b"")),
        layer(entry("./", mtime=1_500_000_000), entry("x/", mtime=1_600_000_000), entry("x/.wh.g", b""),
              entry("x/y/.wh.g", b""), entry("z/.wh.g", b"")),
    )  # fmt: skip
    assert seen(top) == {"x"}
    assert (top.stat().st_mtime, (top / "x").stat().st_mtime) == (1_500_000_000, 1_600_000_000)
    (image,) = store.images()
    sizes = store.layer_sizes(image)[1]
    kept = tmp_path / "image/layers/2"
    files = [top, top / "x"] if top == kept else [kept, kept / "tar", kept / "index"]
    assert sizes["inodes"] == len(files)
    assert sizes["bytes"] == sum(path.stat().st_blocks * 512 for path in files)


@INERT
async def test_attributes_of_overlayfs_are_dropped(store: ImageStore, tmp_path: Path) -> None:
    lower = layer(entry("d/old", b""), entry("secret/x", b""))
    attributes = {f"{space}.overlay.{name}": value for space in ("trusted", "user") for name, value in {
        "opaque": "y", "redirect": "/secret", "metacopy": "", "origin": "x", "impure": "y", "whiteout": "y",
        "overlay.opaque": "y", "anything": "1",
    }.items()}  # fmt: skip
    upper = layer(
        entry("d/", xattrs={**attributes, "user.kept": "1"}),
        entry("d/f", b"content", xattrs={**attributes, "user.kept": "1"}),
        entry("./", xattrs=attributes),
    )
    layers = await unpacked(store, tmp_path, lower, upper)
    with mounted(layers, tmp_path) as merged:
        assert seen(merged) == {"d", "d/old", "d/f", "secret", "secret/x"}
        assert (merged / "d/f").read_bytes() == b"content"
    for path in (layers[0], layers[0] / "d", layers[0] / "d/f"):
        assert [key for key in os.listxattr(path) if "overlay" in key] == []
    assert os.getxattr(layers[0] / "d", "user.kept") == os.getxattr(layers[0] / "d/f", "user.kept") == b"1"


@BYTES
async def test_names_that_are_not_utf8(store: ImageStore, tmp_path: Path) -> None:
    """Directories that no entry describes are what is told of to the layers above."""

    def as_bytes(text: str) -> str:
        return text.encode("latin-1").decode(errors="surrogateescape")

    def latin(name: str, content: bytes | None = None, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
        return entry(as_bytes(name), content, **fields)

    lower = layer(latin("caf\xe9/", mode=0o1777), latin("caf\xe9/old", b""), latin("r\xe9sum\xe9/x", b""))
    upper = layer(
        latin("caf\xe9/th\xe9/new", b""), latin("caf\xe9/.wh.old", b""), latin("\xff/\xfe/.wh.\xfd", b""),
        latin("\xff/\xfc", b"", xattrs={"user.n": "v"}), link("link", as_bytes("caf\xe9")),
        latin("hard", type=tarfile.LNKTYPE, linkname=as_bytes("\xff/\xfc")),
    )  # fmt: skip
    with mounted(await unpacked(store, tmp_path, lower, upper), tmp_path) as merged:
        names = {os.fsencode(name) for name in seen(merged)}
        assert names == {
            b"caf\xe9", b"caf\xe9/th\xe9", b"caf\xe9/th\xe9/new", b"r\xe9sum\xe9", b"r\xe9sum\xe9/x",
            b"\xff", b"\xff/\xfc", b"link", b"hard",
        }  # fmt: skip
        assert os.stat(os.path.join(os.fsencode(merged), b"caf\xe9")).st_mode & 0o7777 == 0o1777


@ODD_TARS
async def test_hard_links_to_what_aufs_kept(store: ImageStore, tmp_path: Path) -> None:
    """Old `docker commit`s on aufs have the content of hard links there, and nobody is to see that directory."""
    (root,) = await unpacked(
        store, tmp_path,
        layer(
            entry(".wh..wh.aufs", b""), entry(".wh..wh.plnk/", mode=0o700), entry(".wh..wh.orph/", mode=0o700),
            entry(".wh..wh.orph/left", b""), entry(".wh..wh.plnk/1.2", b"shared", mode=0o4755), entry("bin/"),
            entry("bin/one", type=tarfile.LNKTYPE, linkname=".wh..wh.plnk/1.2"),
            entry("bin/two", type=tarfile.LNKTYPE, linkname="/.wh..wh.plnk/1.2"),
            entry("bin/.wh..wh.plnk/3.4", b"not there"),
        ),
    )  # fmt: skip
    assert seen(root) == {"bin", "bin/one", "bin/two"}
    assert (root / "bin/one").samefile(root / "bin/two")
    assert (root / "bin/one").stat().st_nlink == 2
    assert ((root / "bin/two").read_bytes(), stat.S_IMODE((root / "bin/two").stat().st_mode)) == (b"shared", 0o4755)


@ODD_TARS
async def test_owners_of_other_systems_and_entries_of_no_name(store: ImageStore, tmp_path: Path) -> None:
    tar = layer(
        entry("", b"nameless"),
        entry("nobody", b"", uid=-2, gid=-2),
        entry("nobody/", mode=0o700, uid=-2, gid=-2),
        entry("last", b"no padding follows"),
        format=tarfile.GNU_FORMAT,
    )
    (root,) = await unpacked(store, tmp_path, tar.rstrip(b"\0"))
    assert seen(root) == {"nobody", "last"}
    assert ((root / "nobody").stat().st_uid, (root / "nobody").stat().st_gid) == (2**32 - 2, 2**32 - 2)
    assert (root / "last").read_bytes() == b"no padding follows"


BY_LINKS = pytest.mark.trial(
    "described-by-another-name", "A directory has what its entry says, by whatever links the entry's name leads to it."
)


@BY_LINKS
async def test_a_directory_is_described_through_a_link(store: ImageStore, tmp_path: Path) -> None:
    """It was made for a file in it, which the archive has first; the layer below says something else of it."""
    below = layer(entry("usr/lib/a/", mode=0o700, uid=7, mtime=1_000_000_000), link("lib", "usr/lib"))
    for name in ("lib/a", "usr/lib/a", "./lib/../lib/a"):
        (top, _) = await unpacked(
            store, tmp_path, below,
            layer(link("lib", "usr/lib"), entry("lib/a/file", name.encode()),
                  entry(f"{name}/", mode=0o755, uid=3, mtime=1_500_000_000)),
        )  # fmt: skip
        there = (top / "usr/lib/a").stat()
        assert (stat.S_IMODE(there.st_mode), there.st_uid, there.st_mtime) == (0o755, 3, 1_500_000_000), name


@BY_LINKS
async def test_what_is_replaced_through_a_link_is_forgotten(store: ImageStore, tmp_path: Path) -> None:
    """And what comes in its place is as its own entries say, or as the layers below do."""
    below = layer(entry("usr/lib/a/", mode=0o700), entry("usr/lib/a/b/", mode=0o711))
    (top, _) = await unpacked(
        store, tmp_path, below,
        layer(link("lib", "usr/lib"), entry("usr/lib/a/b/", mode=0o755, mtime=1_400_000_000),
              entry("usr/lib/a/.wh.x", b""), entry("lib/a", b"no directory"),
              entry("lib/a", type=tarfile.DIRTYPE, mtime=1_500_000_000, mode=0o750), entry("usr/lib/a/b/file", b"")),
    )  # fmt: skip
    modes = [stat.S_IMODE((top / name).stat().st_mode) for name in ("usr/lib/a", "usr/lib/a/b")]
    assert modes == [0o750, 0o711]
    assert (top / "usr/lib/a").stat().st_mtime == 1_500_000_000


@BY_LINKS
async def test_the_last_entry_of_a_directory_has_the_last_word(store: ImageStore, tmp_path: Path) -> None:
    for first, last in (("lib/a/", "usr/lib/a/"), ("usr/lib/a/", "lib/a/")):
        (top,) = await unpacked(
            store, tmp_path,
            layer(entry("usr/lib/", mode=0o755), link("lib", "usr/lib"), entry(first, mtime=1_400_000_000),
                  entry(last, mtime=1_500_000_000)),
        )  # fmt: skip
        assert (top / "usr/lib/a").stat().st_mtime == 1_500_000_000
