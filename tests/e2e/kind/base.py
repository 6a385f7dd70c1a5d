"""An image to make a node image for kind from, where kind's own (kindest/node) cannot be had: made once a machine.

It is what kindest/node is: Debian with systemd, kind's own files, Kubernetes' programs, and a containerd that has the
images of the control plane in its store. These are stand-ins made of the same programs.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

from tests import once
from tests.debian import make_root
from tests.e2e import critest, kubernetes
from tests.images import BuiltImage, build_image, executable, layer, symlink, tar_of, write_layout

BUILD: Final = Path(__file__).parents[1] / "build-kind.sh"
VERSION: Final = "v1.37.2"  # of Kubernetes
IN_NODE: Final = ("kubeadm", "kubectl", "kubelet")
IN_IMAGES: Final = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "etcd", "coredns")
PACKAGES: Final = (
    "bash", "ca-certificates", "conntrack", "containerd", "containernetworking-plugins", "curl", "e2fsprogs", "ethtool",
    "iproute2", "iptables", "jq", "kmod", "libseccomp2", "mount", "nftables", "procps", "systemd", "systemd-sysv",
    "util-linux",
)  # fmt: skip
PROXY_PACKAGES: Final = ("conntrack", "iptables", "kmod", "nftables")
# systemd ends by that signal; by its usual one it starts anew.
CHANGES: Final = (
    "ENV container=docker", "STOPSIGNAL SIGRTMIN+3", 'ENTRYPOINT ["/usr/local/bin/entrypoint","/sbin/init"]',
)  # fmt: skip
_SERVICES: Final = ("containerd.service", "kubelet.service", "undo-mount-hacks.service")
_PLUGINS: Final = ("host-local", "loopback", "portmap", "ptp")
_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Imports an archive into containerd's store, in a root that has nothing of the machine's.
_FILL: Final = """\
set -e
printf 'version = 2\\ndisabled_plugins = ["io.containerd.grpc.v1.cri"]\\n' >/filling.toml
containerd --config /filling.toml >/filling.log 2>&1 &
trap 'kill $!; wait $!; rm -rf /filling.* /run/containerd' EXIT
for try in 1 2 3 4 5 6 7 8 9; do ctr version >/dev/null 2>&1 && break; sleep "$try"; done
ctr --namespace=k8s.io images import --no-unpack /images.tar
"""


@cache
def kind() -> Path:
    """Where `kind` is, and the `files` of its module; built now where they are missing, which takes half a minute."""
    done = subprocess.run([BUILD], check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    return Path(done.stdout.strip())


def prepare() -> Path:
    """A tar of the image's root; made where it is missing, which takes two minutes and the network."""
    programs = kubernetes.directory(*IN_NODE, *IN_IMAGES)
    files = [programs / name for name in (*IN_NODE, *IN_IMAGES)]
    files += [kind() / "kind", critest.programs() / "crictl"]
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return once.made("kind-base", (stamps, Path(__file__).read_text()), _make) / "root.tar"


def _make(home: Path) -> None:
    root = home / "root"
    excluded = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "locale", "man")]
    make_root(root, PACKAGES, "minbase", "--format=directory", *excluded)
    _put_kinds_files(root)
    _put_programs(root)
    _choose_services(root)
    layout = write_layout(home / "layout", dict(_images(home)))
    index = layout / "index.json"
    index.write_text(index.read_text().replace("org.opencontainers.image.ref.name", "io.containerd.image.name"))
    tar_of(layout, root / "images.tar")
    subprocess.run(["unshare", "--mount", "--pid", "--fork", "--kill-child", "chroot", root, "bash", "-c", _FILL],
                   check=True, stdin=subprocess.DEVNULL)  # fmt: skip
    (root / "images.tar").unlink()
    subprocess.run(["tar", "--create", f"--directory={root}", f"--file={home / 'root.tar'}", "."], check=True)
    shutil.rmtree(root)
    shutil.rmtree(layout)


def _put_kinds_files(root: Path) -> None:
    for source in (kind() / "files").rglob("*"):
        if source.is_file():
            name = source.relative_to(kind() / "files")
            target = root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            target.chmod(0o755 if target.parent.name == "bin" else 0o644)
    (root / "kind/version").write_text(VERSION)


def _put_programs(root: Path) -> None:
    programs = kubernetes.directory(*IN_NODE)
    for name in IN_NODE:
        shutil.copy(programs / name, root / "usr/bin")
    shutil.copy(critest.programs() / "crictl", root / "usr/local/bin")
    for program in root.glob("usr/bin/containerd*"):
        program.rename(root / "usr/local/bin" / program.name)
    (root / "usr/bin/ctr").rename(root / "usr/local/bin/ctr")
    plugins = root / "opt/cni/bin"
    plugins.mkdir(parents=True)
    for name in _PLUGINS:
        shutil.copy(root / "usr/lib/cni" / name, plugins)
    (root / "etc/kubernetes/manifests").mkdir(parents=True)


def _choose_services(root: Path) -> None:
    """Only a node's: a container has no terminals, disks or kernel log of its own."""
    for wants in (*root.glob("lib/systemd/system/multi-user.target.wants"), *root.glob("etc/systemd/system/*.wants")):
        shutil.rmtree(wants)
    with (root / "etc/systemd/journald.conf").open("a") as settings:
        settings.write("ReadKMsg=no\n")
    systemctl = ("chroot", str(root), "systemctl", "--quiet")
    subprocess.run([*systemctl, "enable", *_SERVICES], check=True)
    subprocess.run([*systemctl, "mask", "systemd-binfmt.service", "systemd-tmpfiles-setup.service"], check=True)


def _images(home: Path) -> Iterator[tuple[str, BuiltImage]]:
    programs = kubernetes.directory(*IN_NODE, *IN_IMAGES)
    said = subprocess.run([programs / "kubeadm", "config", "images", "list", f"--kubernetes-version={VERSION}"],
                          check=True, stdout=subprocess.PIPE, text=True)  # fmt: skip
    for name in said.stdout.split():
        program = name.rpartition(":")[0].rpartition("/")[2]
        if program in IN_IMAGES:  # crisp's pods need no pause
            place = program if program == "coredns" else f"usr/local/bin/{program}"
            layers = [layer(executable(place, (programs / program).read_bytes()))]
            if program == "kube-proxy":
                layers.insert(0, _tables(home))
            yield name, build_image(layers, {"Env": [_PATH], "Entrypoint": [f"/{place}"]})


def _tables(home: Path) -> bytes:
    """The programs that kube-proxy runs."""
    archive = home / "proxy.tar"
    make_root(archive, PROXY_PACKAGES, "extract")
    tar = io.BytesIO()
    with tarfile.open(archive) as source, tarfile.open(fileobj=tar, mode="w") as target:
        for member in source:
            member.name = member.name.removeprefix("./")
            if member.name.startswith(("bin/", "lib", "sbin/", "usr/lib/", "usr/sbin/")) or member.isdir():
                target.addfile(member, source.extractfile(member) if member.isreg() else None)
        for family in ("iptables", "ip6tables"):
            for ending in ("", "-restore", "-save"):
                target.addfile(symlink(f"usr/sbin/{family}{ending}", "xtables-legacy-multi")[0])
    archive.unlink()
    return tar.getvalue()
