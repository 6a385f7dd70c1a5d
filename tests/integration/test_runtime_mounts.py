"""Mounts that runc's callers count on: crisp-oci on bundles of busybox."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.oci import Bundle

_MAPPINGS = [{"containerID": 0, "hostID": 100_000, "size": 65536}]
_KINDS = ("pid", "mount", "ipc", "uts", "network")
_BIND: dict[str, Any] = {"type": "bind", "options": ["bind"]}


def _linux(*, user_namespace: bool) -> dict[str, Any]:
    if not user_namespace:
        return {}
    namespaces = [{"type": kind} for kind in (*_KINDS, "user")]
    return {"namespaces": namespaces, "uidMappings": _MAPPINGS, "gidMappings": _MAPPINGS}


def _run(
    bundle: Bundle, script: str, *mounts: dict[str, Any], dev: tuple[str, ...] = (), check: bool = True, **top: Any
) -> subprocess.CompletedProcess[str]:
    """Run the script in a container with these mounts besides /proc, /dev and /dev/pts."""
    bundle.configure("sh", "-c", script, **top)
    path = bundle.directory / "config.json"
    config = json.loads(path.read_text())
    config["mounts"][1]["options"] += dev
    config["mounts"] += mounts
    path.write_text(json.dumps(config))
    return bundle.call("run", "one", check=check)


def _table(text: str) -> dict[str, list[str]]:
    """/proc/self/mountinfo by mount point, the topmost of each."""
    return {line.split()[4]: line.split() for line in text.splitlines() if " - " in line}


def _restrictions(text: str, point: str) -> set[str]:
    return set(_table(text)[point][5].split(",")) & {"ro", "nosuid", "nodev", "noexec"}


@contextmanager
def _tmpfs(point: Path, options: str = "") -> Iterator[Path]:
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(point)], check=True)
    if options:
        subprocess.run(["mount", "-o", f"remount,bind,{options}", str(point)], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], check=True)


@pytest.mark.trial("mounts-read-only", "A read-only mount of the container's own is made so once all below it is made.")
@pytest.mark.parametrize("user_namespace", [False, True])
def test_what_is_read_only_is_so_last(bundle: Bundle, user_namespace: bool) -> None:
    """Device nodes, links, mount points and the working directory are made before."""
    script = ("pwd; ls -d /dev/null /dev/fd /dev/pts/ptmx /a/deep/b /a/deep/file /c/w; cat /proc/self/mountinfo;"
              "touch /dev/x /a/x /c/x /sys/fs/cgroup/x 2>&1; touch /a/deep/b/x && echo written")  # fmt: skip
    (bundle.directory / "file").touch()
    (bundle.rootfs / "c/content").mkdir(parents=True)
    done = _run(
        bundle, script,
        {"destination": "/a", "type": "tmpfs", "source": "tmpfs", "options": ["rro"]},
        {"destination": "/a/deep/b", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]},
        _BIND | {"destination": "/a/deep/file", "source": "file"},
        {"destination": "/c", "type": "tmpfs", "source": "tmpfs", "options": ["ro", "tmpcopyup"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]},
        {"destination": "/sys/fs/cgroup/more", "type": "tmpfs", "source": "tmpfs"},
        dev=("ro", "nosuid"), linux=_linux(user_namespace=user_namespace), process={"cwd": "/c/w"},
    )  # fmt: skip
    assert done.stdout.splitlines()[0] == "/c/w"
    for path in ("/dev", "/a", "/c", "/sys/fs/cgroup"):
        assert "ro" in _restrictions(done.stdout, path)
        assert f"{path}/x: Read-only file system" in done.stdout
    assert done.stdout.splitlines()[-1] == "written"


@pytest.mark.trial("mounts-of-disks", "A file system of the host's disk or directories can be mounted.")
@pytest.mark.parametrize("hooks", [{}, {"createContainer": [{"path": "/bin/true"}]}])
def test_file_systems_of_the_hosts_paths(bundle: Bundle, tmp_path: Path, hooks: dict[str, Any]) -> None:
    image = tmp_path / "image"
    image.touch()
    os.truncate(image, 4 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-d", str(bundle.rootfs), str(image)], check=True)
    for name in ("lower", "other", "upper", "work"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower/of-the-lower").touch()
    options = [f"lowerdir={tmp_path}/lower:{tmp_path}/other", f"upperdir={tmp_path}/upper", f"workdir={tmp_path}/work"]
    found = subprocess.run(["losetup", "-f", "-r", "--show", str(image)], check=True, capture_output=True, text=True)
    device = found.stdout.strip()
    try:
        before = image.read_bytes()
        done = _run(
            bundle, "ls -d /disk/bin; touch /disk/x; touch /over/x; ls /over; cat /proc/self/mountinfo",
            {"destination": "/disk", "type": "ext4", "source": device, "options": ["ro", "nosuid"]},
            {"destination": "/over", "type": "overlay", "source": "overlay", "options": [*options, "noexec"]},
            hooks=hooks,
        )  # fmt: skip
        assert done.stdout.splitlines()[:3] == ["/disk/bin", "of-the-lower", "x"]
        assert _restrictions(done.stdout, "/disk") == {"ro", "nosuid"}
        assert _restrictions(done.stdout, "/over") == {"noexec"}
        assert (tmp_path / "upper/x").exists()
        assert image.read_bytes() == before
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


@pytest.mark.trial("mounts-at-links", "Where an image's link leads to nothing, a mount point is made there, inside.")
@pytest.mark.parametrize("user_namespace", [False, True])
def test_mount_points_that_links_lead_to(bundle: Bundle, tmp_path: Path, user_namespace: bool) -> None:
    """Links to nothing, through nothing, up and out; of them nothing comes to be on the host."""
    away = tmp_path / "away"
    links = {
        "etc/hosts": f"{away}/hosts",
        "etc/resolv.conf": "../run/resolve/stub.conf",
        "gone": "/not/there/../yet",
        "up": f"../../../../../../../../..{away}/up",
        "chain": "gone/more",
    }
    (bundle.rootfs / "etc").mkdir()
    for name, target in links.items():
        (bundle.rootfs / name).symlink_to(target)
    (bundle.directory / "file").write_text("mounted\n")
    (bundle.directory / "tree").mkdir()
    (bundle.directory / "tree/leaf").write_text("mounted\n")
    files = [_BIND | {"destination": f"/etc/{name}", "source": "file"} for name in ("hosts", "resolv.conf")]
    trees = [_BIND | {"destination": f"/{name}", "source": "tree"} for name in ("up/below", "chain")]
    done = _run(
        bundle, f"cat /etc/hosts {away}/hosts /run/resolve/stub.conf /chain/leaf /up/below/leaf; readlink /etc/hosts;"
        " ls -d /gone/t",
        *files, *trees, {"destination": "/gone/t", "type": "tmpfs", "source": "tmpfs"},
        linux=_linux(user_namespace=user_namespace),
    )  # fmt: skip
    assert done.stdout.splitlines() == ["mounted"] * 5 + [f"{away}/hosts", "/gone/t"]
    assert not away.exists()
    (bundle.rootfs / "loop").symlink_to("/loop/x")
    refused = _run(bundle, "true", _BIND | {"destination": "/loop/x", "source": "tree"}, check=False)
    assert "mount `bind` on `/loop/x`: Too many levels of symbolic links" in refused.stderr


@pytest.mark.trial("mounts-tmpfs-mode", "A tmpfs without a mode has that of the directory that it covers.")
@pytest.mark.parametrize("user_namespace", [False, True])
def test_the_mode_of_a_tmpfs(bundle: Bundle, user_namespace: bool) -> None:
    for name, mode in (("a", 0o710), ("b", 0o2755), ("c", 0o1770), ("given", 0o700)):
        (bundle.rootfs / name).mkdir()
        (bundle.rootfs / name).chmod(mode)
    (bundle.rootfs / "link").symlink_to("a")
    mounts = [{"destination": f"/{name}", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]}
              for name in ("link", "b", "c", "new")]  # fmt: skip
    given = {"destination": "/given", "type": "tmpfs", "source": "tmpfs", "options": ["mode=1750"]}
    done = _run(bundle, "busybox stat -c %a.%u.%g /a /b /c /given /new", *mounts, given,
                linux=_linux(user_namespace=user_namespace))  # fmt: skip
    assert done.stdout.split() == ["710.0.0", "2755.0.0", "1770.0.0", "1750.0.0", "1777.0.0"]


@pytest.mark.trial("mounts-kinds", "A file over a directory, or the other way round, is refused saying which is what.")
@pytest.mark.parametrize("user_namespace", [False, True])
def test_files_and_directories_that_meet(bundle: Bundle, user_namespace: bool) -> None:
    (bundle.directory / "file").touch()
    (bundle.rootfs / "etc").mkdir()
    (bundle.rootfs / "etc/hosts").touch()
    (bundle.rootfs / "etc/link").symlink_to("hosts")
    words = "Are you trying to mount a directory onto a file (or vice-versa)?"
    tmpfs = {"type": "tmpfs", "source": "tmpfs"}
    for mount, source, kinds in (
        (_BIND | {"destination": "/bin", "source": "file"}, f"{bundle.directory}/file", ("file", "directory")),
        (_BIND | {"destination": "/etc/hosts", "source": "rootfs/etc"}, "rootfs/etc", ("directory", "file")),
        (_BIND | {"destination": "/etc/link", "source": str(bundle.root.parent)}, "", ("directory", "file")),
        (tmpfs | {"destination": "/etc/hosts"}, "tmpfs", ("directory", "file")),
        (tmpfs | {"destination": "/etc/hosts", "options": ["tmpcopyup"]}, "tmpfs", ("directory", "file")),
    ):
        done = _run(bundle, "true", mount, linux=_linux(user_namespace=user_namespace), check=False)
        assert done.returncode == 1
        assert f"{source}` on `{mount['destination']}`: not a directory: the source is a {kinds[0]}" in done.stderr
        assert f"in the container is a {kinds[1]}: {words}" in done.stderr
    under = _run(bundle, "true", tmpfs | {"destination": "/etc/hosts/below"}, check=False)
    assert "mount `tmpfs` on `/etc/hosts/below`: not a directory: a component of that path is a file in" in under.stderr
    assert words in under.stderr


@pytest.mark.parametrize("destination", ["/dev/", "//dev", "dev", "/x/../dev/."])
def test_a_dev_that_is_bound_is_left_alone(bundle: Bundle, tmp_path: Path, destination: str) -> None:
    """However it is written: no device nodes are made in the host's directory, nor their modes changed."""
    (tmp_path / "dev").mkdir()
    _run(bundle, "true", {"destination": destination, "type": "bind", "source": str(tmp_path / "dev"),
                          "options": ["rbind"]})  # fmt: skip
    assert not list((tmp_path / "dev").iterdir())


@pytest.mark.trial("mounts-own-source", "A source below the container's rootfs shows what is mounted there so far.")
@pytest.mark.parametrize("user_namespace", [False, True])
def test_a_source_in_the_containers_own_rootfs(bundle: Bundle, tmp_path: Path, user_namespace: bool) -> None:
    (tmp_path / "volume/sub").mkdir(parents=True)
    (tmp_path / "volume/sub/file").write_text("of the volume\n")
    (bundle.rootfs / "out").symlink_to(tmp_path)
    (bundle.rootfs / "lib").mkdir()
    (bundle.rootfs / "lib/file").write_text("of the image\n")
    rbind = {"type": "bind", "options": ["rbind", "ro"]}
    done = _run(
        bundle, "cat /final/sub/file /file /plain/file /linked/sub/file; ls /empty; cat /proc/self/mountinfo",
        rbind | {"destination": "/plain", "source": "rootfs/lib"},
        rbind | {"destination": "/empty", "source": "rootfs/mnt/volume"},
        _BIND | {"destination": "/mnt/volume", "source": str(tmp_path / "volume")},
        rbind | {"destination": "/final", "source": str(bundle.rootfs / "mnt/volume")},
        _BIND | {"destination": "/file", "source": "./rootfs/mnt/volume/sub/../sub/file"},
        rbind | {"destination": "/linked", "source": "rootfs/out/volume"},
        linux=_linux(user_namespace=user_namespace), check=False,
    )  # fmt: skip
    assert "open bind mount source `" in done.stderr  # of /empty, which is not there yet
    (bundle.rootfs / "mnt/volume").mkdir(parents=True, exist_ok=True)
    done = bundle.call("run", "one")
    assert done.stdout.splitlines()[:4] == ["of the volume", "of the volume", "of the image", "of the volume"]
    assert " - " in done.stdout.splitlines()[4]  # /empty has nothing
    assert "ro" in _restrictions(done.stdout, "/final")


@pytest.mark.trial("mounts-flags", "A bind mount has the flags named; for a user namespace it keeps its source's.")
def test_flags_of_a_bind_mount(bundle: Bundle, tmp_path: Path) -> None:
    looks = "cat /proc/self/mountinfo; touch /some/x && echo written"
    cases: dict[str, tuple[list[str], set[str]]] = {
        "/none": (["bind"], {"ro", "nosuid", "noexec"}),
        "/some": (["bind", "nosuid"], {"nosuid"}),
        "/ro": (["rbind", "ro", "rprivate"], {"ro"}),
        "/rw": (["bind", "rw"], set()),
        "/atime": (["bind", "noatime"], set()),
        "/kept": (["bind", "remount", "nodev"], {"ro", "nosuid", "noexec", "nodev"}),
    }
    with _tmpfs(tmp_path / "source", "ro,nosuid,noexec") as source:
        mounts = [{"destination": destination, "type": "bind", "source": str(source), "options": options}
                  for destination, (options, _expected) in cases.items()]  # fmt: skip
        done = _run(bundle, looks, *mounts)
        for destination, (_options, expected) in cases.items():
            assert _restrictions(done.stdout, destination) == expected, destination
        assert done.stdout.splitlines()[-1] == "written"
        kept = [mount for mount in mounts if mount["destination"] != "/rw"]
        done = _run(bundle, "cat /proc/self/mountinfo", *kept, linux=_linux(user_namespace=True))
        for mount in kept:
            named = set(mount["options"]) & {"nodev"}
            assert _restrictions(done.stdout, mount["destination"]) == {"ro", "nosuid", "noexec"} | named
        for option in ("rw", "suid", "exec", "rrw"):
            loosened = mounts[0] | {"options": ["rbind", option]}
            done = _run(bundle, "true", loosened, linux=_linux(user_namespace=True), check=False)
            assert f"bind `{source}`: a mount in a user namespace must keep its source's" in done.stderr
        fine = mounts[0] | {"options": ["rbind", "dev"]}
        assert _run(bundle, "true", fine, linux=_linux(user_namespace=True)).returncode == 0


@pytest.mark.trial("mounts-sharing", "Mounts that are to be shared are so in a user namespace too.")
@pytest.mark.parametrize("user_namespace", [False, True])
def test_shared_mounts(bundle: Bundle, tmp_path: Path, user_namespace: bool) -> None:
    (tmp_path / "tree").mkdir()
    with _tmpfs(tmp_path / "source") as source:
        (source / "deep").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "deep", str(source / "deep")], check=True)
        bind = {"type": "bind", "source": str(source)}
        idmap = ["idmap"] if user_namespace else []
        done = _run(
            bundle, "cat /proc/self/mountinfo",
            bind | {"destination": "/tree", "options": ["rbind", "rshared"]},
            bind | {"destination": "/one", "options": ["bind", "shared", *idmap]},
            {"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": ["shared"]},
            {"destination": "/covered", "type": "tmpfs", "source": "tmpfs", "options": ["shared"]},
            {"destination": "/covered", "type": "tmpfs", "source": "tmpfs"},
            bind | {"destination": "/apart", "options": ["bind", "private"]},
            bind | {"destination": "/alone", "options": ["bind", "unbindable"]},
            linux=_linux(user_namespace=user_namespace) | {"rootfsPropagation": "shared"},
        )  # fmt: skip
    table = _table(done.stdout)
    shared = {point for point, fields in table.items() if any(field.startswith("shared:") for field in fields)}
    # A mount on a shared one is born shared, in no user namespace.
    assert shared - {"/covered"} == {"/", "/tree", "/tree/deep", "/one", "/t"}
    assert "unbindable" in table["/alone"]


@pytest.mark.trial("mounts-of-the-host", "What the host mounts below a rootfs later arrives as rootfsPropagation says.")
@pytest.mark.parametrize("user_namespace", [False, True])
def test_mounts_of_the_host_below_the_rootfs(bundle: Bundle, user_namespace: bool) -> None:
    (bundle.rootfs / "mnt").mkdir()
    subprocess.run(["mount", "--bind", str(bundle.directory), str(bundle.directory)], check=True)
    subprocess.run(["mount", "--make-shared", str(bundle.directory)], check=True)
    try:
        for value, arrives in (("", True), ("slave", True), ("rslave", True), ("private", False), ("rprivate", False),
                               ("shared", False), ("unbindable", False)):  # fmt: skip
            linux = _linux(user_namespace=user_namespace) | ({"rootfsPropagation": value} if value else {})
            bundle.configure("sleep", "100", linux=linux)
            pid = bundle.create()
            subprocess.run(["mount", "-t", "tmpfs", "later", str(bundle.rootfs / "mnt")], check=True)
            seen = Path(f"/proc/{pid}/mountinfo").read_text()
            subprocess.run(["umount", str(bundle.rootfs / "mnt")], check=True)
            assert ("/mnt" in _table(seen)) == arrives, value
            root = _table(seen)["/"]
            assert any(field.startswith("master:") for field in root) == arrives, value
            bundle.delete()
        assert "rootfs" not in Path("/proc/self/mountinfo").read_text().replace(f"{bundle.directory} ", "")
    finally:
        subprocess.run(["umount", "-l", str(bundle.directory)], check=True)


@pytest.mark.trial("mounts-relative", "A relative destination is taken from the root, with a warning.")
def test_a_relative_destination(bundle: Bundle) -> None:
    mounts = [{"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": [f"size={size}k"]}
              for destination, size in (("mnt", 4), ("./a/../b", 8), ("../../c", 12))]  # fmt: skip
    done = _run(bundle, "cat /proc/self/mountinfo", *mounts)
    assert {"/mnt", "/b", "/c"} <= _table(done.stdout).keys()
    for index, destination in enumerate(("mnt", "./a/../b", "../../c"), 3):
        assert f"mounts[{index}].destination: {destination!r} is relative" in done.stderr
    assert not os.path.exists(bundle.directory / "mnt")
