"""critest, the acceptance tests for CRI runtimes of Kubernetes' node team, with stand-ins for its images."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

from tests.daemon import Daemon
from tests.e2e import ginkgo
from tests.images import BuiltImage, build_image, entry, layer, write_layout
from tests.registry import Registry

BUILD: Final = Path(__file__).with_name("build-critest.sh")
PROCESSES: Final = 4
# Hosts that critest names, and the prefix of what it wants of them in the registry.
MIRRORS: Final = {
    "registry.k8s.io": "", "k8s.gcr.io": "", "gcr.io/k8s-staging-cri-tools": "/k8s-staging-cri-tools",
}  # fmt: skip
# An image by a digest that only its own registry has.
IMPOSSIBLE: Final = "public image with digest should be pulled and removed"
# Why specs with these words in their names do not run where tests/e2e does.
SKIPPED: Final = {
    IMPOSSIBLE: "it names an image by a digest, which no stand-in has; PullImage by digest is tests/integration's",
    "benchmark": "it measures and asserts nothing: python -m tests.bench critest runs it, beside other runtimes",
    "AppArmor": "this machine's kernel has no AppArmor: tests/vm runs it in its guest",
}
_TITLE: Final = "master process"  # what critest looks for in nginx's command line
_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PASSWD: Final = """root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
bin:x:2:2:bin:/bin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
nobody:x:65534:65534:nobody:/home:/bin/false
"""
_GROUP: Final = "root:x:0:\ndaemon:x:1:\nbin:x:2:\nwww-data:x:33:\nnogroup:x:65534:\n"


@cache
def programs() -> Path:
    """Where critest, crictl and the images' programs are; built now where they are missing, which takes minutes."""
    done = subprocess.run([BUILD], check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    return Path(done.stdout.strip())


def registries(registry: Registry) -> str:
    """The registries.conf that sends critest's image names to `registry`."""
    return "".join(
        f'[[registry]]\nprefix = "{host}"\nlocation = "{host}"\n'
        f'[[registry.mirror]]\nlocation = "{registry.host}{prefix}"\ninsecure = true\n'
        for host, prefix in MIRRORS.items()
    )


def fill(registry: Registry) -> None:
    """Push a stand-in for each image that critest names."""
    for name, image in _images():
        repository, _, tag = name.partition(":")
        registry.push(repository, tag, image)


def run(daemon: Daemon, nri_socket: Path, *arguments: str, skip: Sequence[str] = ()) -> ginkgo.Outcome:
    """Run critest's specs but those of `skip`, several at once, in random order. `arguments` are critest's own."""
    skipping = [f"-ginkgo.skip={re.escape(name)}" for name in skip]
    more = (f"-parallel={PROCESSES}", f"-nri-socket={nri_socket}", *skipping, *arguments)
    place = daemon.directory / "critest"
    place.mkdir()
    environment = os.environ | {"PATH": f"{programs()}:{os.environ['PATH']}", "TMPDIR": str(place)}
    try:
        return _run(programs() / "critest", daemon.listen, daemon.directory, more, environment)
    finally:
        _unmount_below(place)


def _unmount_below(place: Path) -> None:
    """A spec that fails leaves its mounts."""
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for path in reversed([path for path in mounted if path.startswith(f"{place}/")]):
        subprocess.run(["umount", path], check=True)


def run_alone(program: Path, endpoint: str, directory: Path, focus: Sequence[str]) -> ginkgo.Outcome:
    """Run the specs whose names have one of the words of `focus`, one after the other; others are not told of."""
    more = [f"-ginkgo.focus={re.escape(word)}" for word in focus]
    outcome = _run(program, endpoint, directory, more, dict(os.environ))
    skipped = {name: why for name, why in outcome.skipped.items() if any(word in name for word in focus)}
    return ginkgo.Outcome(outcome.passed, outcome.failed, skipped, outcome.seconds)


def _run(
    program: Path, endpoint: str, directory: Path, arguments: Sequence[str], environment: dict[str, str]
) -> ginkgo.Outcome:
    report = directory / "critest.xml"
    command = [
        str(program), f"-runtime-endpoint={endpoint}", f"-image-endpoint={endpoint}", f"-ginkgo.junit-report={report}",
        "-ginkgo.no-color", *arguments,
    ]  # fmt: skip
    done = subprocess.run(
        command, env=environment, cwd=directory, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    if not report.exists():
        raise RuntimeError(f"critest wrote no report (exit status {done.returncode}):\n{done.stdout[-4000:]}")
    return ginkgo.read(report)


def busybox_layout(directory: Path) -> Path:
    """An OCI layout in `directory` with the image that most specs run, for where there is no registry."""
    name, image = next(_images())
    return write_layout(directory, {f"{next(iter(MIRRORS))}/{name}": image})


def _images() -> Iterator[tuple[str, BuiltImage]]:
    staged = "k8s-staging-cri-tools"
    groups = "default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n"
    root, grouped = _busybox(), _busybox("default-user:x:1000:1000::/:/bin/sh\n", groups)
    standin = (programs() / "standin").read_bytes()

    def image(*layers: bytes, **config: Any) -> BuiltImage:
        return build_image(layers, {"Env": [_PATH], "Cmd": ["sh"], **config})

    def named(name: str) -> BuiltImage:
        return image(root, layer(entry(name, name.encode())))

    server = layer(entry("usr/sbin/nginx", standin, mode=0o755))
    yield "e2e-test-images/busybox:1.29-2", image(root)
    yield "e2e-test-images/nginx:1.14-2", image(root, server, Cmd=["nginx", "80", _TITLE])
    yield "e2e-test-images/httpd:2.4.39-4", image(root, server, Cmd=["nginx", "80", _TITLE])
    yield f"{staged}/hostnet-nginx-amd64:latest", image(root, server, Cmd=["nginx", "12003", _TITLE])
    setuid = layer(entry("nnp", standin, mode=0o4755))
    yield "e2e-test-images/nonewprivs:1.3", image(root, setuid, Entrypoint=["/nnp"], Cmd=None)
    yield "pause:3.9", image(root, Entrypoint=["sleep", "2147483647"], Cmd=None, User="65535:65535")
    users = {"uid": "1002", "username": "www-data", "uid-group": "1003:1004", "username-group": "www-data:1004"}
    for name, user in users.items():
        yield f"{staged}/test-image-user-{name}:latest", image(root, User=user)
    yield f"{staged}/test-image-predefined-group:latest", image(grouped, User="1000")
    yield f"{staged}/test-image-latest:latest", named("latest")
    for tag in ("test", "all"):
        yield f"{staged}/test-image-tag:{tag}", named(f"tag-{tag}")
    for number in "123":
        yield f"{staged}/test-image-{number}:latest", named(number)
        yield f"{staged}/test-image-tags:{number}", named("tags")


def _busybox(users: str = "", groups: str = "") -> bytes:
    """A root with Debian's busybox and what critest runs beside it, each with the shared objects that it loads."""
    busybox = programs() / "busybox"
    applets = subprocess.run([busybox, "--list"], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    directories = ("tmp/", "root/", "var/", "var/www/", "var/run/", "home/", "proc/", "sys/", "dev/", "run/", "etc/")
    others = {"usr/bin/pgrep": Path("/usr/bin/pgrep"), "usr/bin/ipcs": Path("/usr/bin/ipcs")}
    objects = {name.lstrip("/"): Path(name) for program in (busybox, *others.values()) for name in _loaded(program)}
    files = {"bin/busybox": busybox, **others, **objects}
    return layer(
        *(entry(name, mode=0o1777 if name == "tmp/" else 0o755) for name in directories),
        *(entry(name, path.read_bytes(), mode=0o755) for name, path in files.items()),
        *(entry(f"bin/{name}", type=b"1", linkname="bin/busybox") for name in applets if name != "busybox"),
        entry("etc/passwd", (_PASSWD + users).encode()),
        entry("etc/group", (_GROUP + groups).encode()),
    )


def _loaded(program: Path) -> list[str]:
    listed = subprocess.run(["ldd", program], check=True, stdout=subprocess.PIPE, text=True).stdout
    return re.findall(r"(/\S+) \(0x", listed)
