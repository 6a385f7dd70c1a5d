"""Stand-ins for the images that conformance tests pull, in the storage of a registry: made once a machine.

They are made of Debian's packages and of programs of Kubernetes' own module. Their names and tags are those that the
suite itself tells.
"""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tests import once
from tests.debian import make_root
from tests.e2e import critest, kubernetes
from tests.images import BuiltImage, build_image, busybox_layer, entry, executable, layer, symlink, texts
from tests.pki import Authority
from tests.registry import Registry

PROGRAMS: Final = ("e2e.test", "agnhost", "coredns", "etcd", "sample-apiserver")
PACKAGES: Final = (
    "bash", "bash-static", "bind9-dnsutils", "busybox-static", "catatonit", "coreutils", "curl", "iproute2", "libc-bin",
    "netcat-openbsd", "nginx-light", "procps", "socat", "util-linux",
)  # fmt: skip
_UNWANTED: Final = re.compile(
    r"dev/|etc/nginx/|usr/share/(doc|info|locale|man|nginx|zoneinfo|perl)|var/(cache|lib/(apt|dpkg))|usr/lib/[^/]*/gconv"
)
_SHELL: Final = "bin/bash-static"
_PAUSE: Final = "usr/bin/catatonit"  # which podman has for this
_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FILES: Final = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33::/var/www:/bin/sh\n"
    "user-defined-in-image:x:1000:1000::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
    "etc/group": "root:x:0:\nwww-data:x:33:\nuser-defined-in-image:x:1000:\nnogroup:x:65534:\n"
    "group-defined-in-image:x:50000:user-defined-in-image\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}
_NGINX: Final = """\
daemon off;
user www-data;
error_log /dev/stderr;
events {}
http {
    access_log /dev/stdout;
    server {
        listen 80;
        root /usr/share/nginx/html;
    }
}
"""
# Tests look for the words of busybox's shell, and for variables with names that shells do not have, which Debian's does
# not hand on.
_SH: Final = """\
#!/bin/bash
while IFS= read -r -d '' variable; do
    [[ $variable =~ ^[A-Za-z_][A-Za-z_0-9]*= ]] || exec -a "$0" /bin/bash "$@"
done </proc/self/environ
exec -a "$0" /bin/busybox "$@"
"""
# A test reads the name of the system that its image is made of.
_SYSTEM: Final = {"etc/os-release": 'NAME="Alpine Linux"\nID=alpine\n'}


def prepare() -> Path:
    """The storage of a registry with all of them; made where it is missing, which takes a minute and the network."""
    programs = [kubernetes.directory(*PROGRAMS) / name for name in PROGRAMS] + [critest.programs() / "standin"]
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in programs]
    return once.made("conformance", (stamps, Path(__file__).read_text()), _make) / "storage"


def _make(home: Path) -> None:
    archive = home / "debian.tar"
    make_root(archive, PACKAGES, "extract")
    wanted = _listed()
    with Registry(home) as registry:
        for repository, image in _images(archive, home / "certificates"):
            # The suite names some images in more than one version; only coredns it does not name.
            for tag in wanted.get(repository, ("test",)):
                registry.push(repository, tag, image)
    archive.unlink()


def _listed() -> dict[str, list[str]]:
    """The tags of each repository that the suite names."""
    suite = kubernetes.directory("e2e.test") / "e2e.test"
    said = subprocess.run([suite, "--list-images"], check=True, stdout=subprocess.PIPE, text=True).stdout
    tags: dict[str, list[str]] = {}
    for repository, tag in re.findall(r"^registry\.k8s\.io/(\S+):(\S+)$", said, re.MULTILINE):
        tags.setdefault(repository, []).append(tag)
    return tags


def _images(archive: Path, certificates: Path) -> Iterator[tuple[str, BuiltImage]]:
    programs = kubernetes.directory(*PROGRAMS)
    debian, found = _debian(archive)
    prefix = "e2e-test-images"

    def image(*layers: bytes, **config: Any) -> BuiltImage:
        return build_image(layers, {"Env": [_PATH], **config})

    def program(name: str, place: str = "") -> bytes:
        return layer(executable(place or name, (programs / name).read_bytes()))

    certificates.mkdir()
    certificate, key = Authority(certificates / "authority").issue(certificates, "localhost")
    helper = layer(
        executable("agnhost", (programs / "agnhost").read_bytes()),
        symlink("agnhost-2", "agnhost"),
        entry("localhost.crt", certificate.read_bytes()),
        entry("localhost.key", key.read_bytes()),
        entry("uploads/", mode=0o777),
    )
    ports = {f"{port}/tcp": {} for port in (80, 5000, 8080, 8081, 9376)}
    agnhost: dict[str, Any] = {"Entrypoint": ["/agnhost"], "Cmd": ["pause"], "ExposedPorts": ports}
    yield f"{prefix}/agnhost", image(debian, helper, **agnhost)
    for name in ("kitten", "nautilus"):
        page = layer(*texts({"data.json": f'{{"image": "{name}.jpg"}}\n', f"{name}.jpg": name, **_SYSTEM}))
        yield f"{prefix}/{name}", image(debian, helper, page, **{**agnhost, "Cmd": ["test-webserver"]})
    yield f"{prefix}/glibc-dns-testing", image(debian, Cmd=["bash"])
    shell = layer(executable("bin/bash", found[_SHELL]), executable("bin/sh", _SH.encode()))
    yield f"{prefix}/busybox", image(busybox_layer(), shell, Cmd=["sh"])
    site = layer(*texts({"etc/nginx/nginx.conf": _NGINX, "usr/share/nginx/html/index.html": "<h1>Welcome</h1>\n"}))
    yield f"{prefix}/nginx", image(debian, site, Cmd=["nginx"], ExposedPorts={"80/tcp": {}})
    effective_user = layer(executable("nnp", (critest.programs() / "standin").read_bytes(), 0o4755))
    yield f"{prefix}/nonewprivs", image(effective_user, Entrypoint=["/nnp"])
    pause = layer(executable("pause", found[_PAUSE]))
    yield "pause", image(pause, Entrypoint=["/pause", "-P"], User="65535:65535")
    yield f"{prefix}/sample-apiserver", image(program("sample-apiserver"), Entrypoint=["/sample-apiserver"])
    yield "etcd", image(busybox_layer(), program("etcd", "usr/local/bin/etcd"), Cmd=["etcd"])
    yield "coredns/coredns", image(program("coredns"), Entrypoint=["/coredns"])


def _debian(archive: Path) -> tuple[bytes, dict[str, bytes]]:
    """A root of Debian's packages, with busybox for the commands that none of them has; and some of its programs."""
    commands, found, tar = set(), {}, io.BytesIO()
    with tarfile.open(archive) as source, tarfile.open(fileobj=tar, mode="w", format=tarfile.PAX_FORMAT) as target:
        for member in source:
            name = member.name.removeprefix("./")
            if not name or _UNWANTED.match(name) or name in _FILES:
                continue
            directory, _, base = name.rpartition("/")
            if directory in ("bin", "sbin", "usr/bin", "usr/sbin"):
                commands.add(base)
            content = source.extractfile(member) if member.isreg() else None
            if content is not None and name in (_SHELL, _PAUSE):
                found[name] = content.read()
                content.seek(0)
            member.name, member.linkname = (
                name,
                member.linkname.removeprefix("./") if member.islnk() else member.linkname,
            )
            target.addfile(member, content)
        missing = set(_applets()) - commands - {"busybox", "nc", "sh"}
        more = [
            *(symlink(f"usr/local/bin/{name}", "/bin/busybox") for name in sorted(missing)),
            symlink("usr/local/bin/nc", "/bin/nc.openbsd"),
            symlink("bin/sh", "bash"),
            entry("run/"),
            entry("tmp/", mode=0o1777),
            *texts(_FILES),
        ]
        for info, text in more:
            target.addfile(info, io.BytesIO(text))
    return tar.getvalue(), found


def _applets() -> Sequence[str]:
    return subprocess.run(["busybox", "--list"], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
