"""`crisp bundle`: one archive for a bug report. It has no secrets: what may hold some is left out or made unreadable.

Left out: environments, arguments, annotations, labels, logins, output of containers, files of containers and images.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from cri.admin.v1 import admin_pb2
from cri.client.config import effective
from cri.client.doctor import command as doctor
from cri.client.doctor.machine import Machine
from cri.client.errors import ClientError, UsageError
from cri.client.render import plain
from cri.v1 import api_pb2
from cri.version import crisp_version

if TYPE_CHECKING:
    from cri.client.connection import Connection

_LOG_LINES: Final = 5000
_LOG_SECONDS: Final = 30
_HIDDEN: Final = "[left out]"
# What looks like a secret, in the words of plugins, hooks and registries, and in the log.
_SECRETS: Final = (
    re.compile(r"(?<=://)[^/\s@\"']+(?=@)"),  # a login in a URL
    re.compile(r"(?i)(?<=bearer )[^\s\"',]+|(?<=basic )[A-Za-z0-9+/=]{8,}"),
    re.compile(r"""(?ix)(?<!\w)\\?["']?[\w.-]*(?:passw(?:or)?d|passphrase|secret|token|credential|api[_-]?key|authorization)
                   [\w.-]*\\?["']?\s*[=:]\s*(?:\\?"[^"]*"|'[^']*'|[^\s"',;&]+)"""),
    re.compile(r"eyJ[\w-]{8,}\.[\w-]+\.[\w-]+"),  # a JSON web token
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)", re.DOTALL),
)  # fmt: skip
_MACHINE_FILES: Final = (
    "/etc/os-release", "/proc/meminfo", "/proc/cgroups", "/proc/filesystems", "/proc/loadavg", "/proc/pressure/cpu",
    "/proc/pressure/io", "/proc/pressure/memory", "/sys/kernel/security/lsm", "/sys/fs/cgroup/cgroup.controllers",
)  # fmt: skip


def run(arguments: argparse.Namespace, connection: Connection) -> int:
    """Write the archive, and print its name. A part that cannot be had is replaced by the reason."""
    name = arguments.file or time.strftime("crisp-bundle-%Y%m%d-%H%M%S.tar.gz")
    root = Path(name).name.split(".")[0]
    try:
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UsageError(f"write {name}: {error.strerror}") from None
    with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for member, text in _parts(connection, reach=not arguments.offline):
            content = scrubbed(text).encode(errors="replace")
            entry = tarfile.TarInfo(f"{root}/{member}")
            entry.size, entry.mtime, entry.mode = len(content), int(time.time()), 0o600
            archive.addfile(entry, io.BytesIO(content))
    print(f"wrote {name}: read it before you send it; it names pods, images, registries and paths of this node")
    return 0


def scrubbed(text: str) -> str:
    """Return the text without what looks like a secret."""
    for secret in _SECRETS:
        text = secret.sub(_HIDDEN, text)
    return text


def _parts(connection: Connection, *, reach: bool) -> Iterator[tuple[str, str]]:
    def json_of(make: Callable[[], Any]) -> Callable[[], str]:
        return lambda: json.dumps(make(), indent=1, ensure_ascii=False)

    parts: dict[str, Callable[[], str]] = {
        "versions.json": json_of(lambda: _versions(connection)),
        "status.json": json_of(lambda: _status(connection)),
        "config.toml": lambda: effective().to_toml(),
        "doctor.json": json_of(lambda: _doctor(connection, reach)),
        "pods.json": json_of(lambda: _pods(connection)),
        "containers.json": json_of(lambda: _containers(connection)),
        "images.json": json_of(lambda: _images(connection)),
        "why.json": json_of(lambda: _diagnoses(connection)),
        "network.json": json_of(lambda: _networks(effective().cni_conf_dir)),
        "machine.txt": lambda: "\n".join(_machine()),
        "crispd.log": _log,
    }
    for member, make in parts.items():
        try:
            text = make()
        except (ClientError, OSError, ValueError, subprocess.SubprocessError) as error:
            text = f"could not be had: {error}\n"
        yield member, text


def _versions(connection: Connection) -> dict[str, Any]:
    packages = {one.metadata["Name"]: one.version for one in metadata.distributions()}
    runtime = connection.read(connection.runtime.Version, api_pb2.VersionRequest())
    return {
        "client": crisp_version(),
        "runtime": plain(runtime),
        "python": platform.python_version(),
        "kernel": " ".join(platform.uname()),
        "packages": dict(sorted(packages.items())),
    }


def _status(connection: Connection) -> dict[str, Any]:
    # The verbose part has the configuration, which config.toml has too, and runtime handlers.
    return plain(connection.read(connection.runtime.Status, api_pb2.StatusRequest(verbose=False)))


def _doctor(connection: Connection, reach: bool) -> list[dict[str, Any]]:
    return [asdict(one) for one in chain(doctor.examine(Machine(), reach), doctor.daemon(connection))]


def _pods(connection: Connection) -> list[dict[str, Any]]:
    found = connection.read(connection.runtime.ListPodSandbox, api_pb2.ListPodSandboxRequest()).items
    return [_without_words(plain(one)) for one in found]


def _containers(connection: Connection) -> list[dict[str, Any]]:
    found = connection.read(connection.runtime.ListContainers, api_pb2.ListContainersRequest()).containers
    return [_without_words(plain(one)) for one in found]


def _images(connection: Connection) -> dict[str, Any]:
    return plain(connection.read(connection.images.ListImages, api_pb2.ListImagesRequest()))


def _without_words(described: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in described.items() if key not in ("annotations", "labels")}


def _diagnoses(connection: Connection) -> list[dict[str, Any]]:
    answer = connection.read(connection.admin.WhyAll, admin_pb2.WhyAllRequest(everything=True))
    return [without_output(one) for one in answer.answers]


def without_output(answer: admin_pb2.WhyResponse) -> dict[str, Any]:
    """Return a diagnosis without the words that a container wrote, which its cause may repeat."""
    words = [one.text.partition(": ")[2].strip() for one in answer.timeline if one.kind == "output"]
    kept = [one for one in answer.timeline if one.kind != "output"]
    del answer.timeline[:]
    answer.timeline.extend(kept)
    for one in sorted(words, key=len, reverse=True):
        answer.cause = answer.cause.replace(one, _HIDDEN)
    return plain(answer)


def _networks(directory: Path) -> list[dict[str, Any]]:
    """Return the names and plugins of the CNI configurations. The rest may hold an agent's token."""
    found = []
    for path in sorted(directory.iterdir()):
        if path.suffix not in (".conflist", ".conf", ".json"):
            continue
        try:
            read = json.loads(path.read_text())
            plugins = read.get("plugins", [read])
            kinds = [(one.get("type"), (one.get("ipam") or {}).get("type")) for one in plugins]
            found.append({"file": path.name, "name": read.get("name"), "plugins": kinds})
        except (OSError, ValueError, AttributeError, TypeError) as error:
            found.append({"file": path.name, "error": str(error)})
    return found


def _machine() -> Iterator[str]:
    for name in _MACHINE_FILES:
        try:
            content = Path(name).read_text(errors="replace")
        except OSError as error:
            content = f"{error.strerror}\n"
        yield f"== {name}\n{content}"
    root = effective().root
    for path in (root, effective().state, Path("/tmp")):
        try:
            usage = shutil.disk_usage(path)
        except OSError:
            continue
        yield f"== disk of {path}: {usage.free} of {usage.total} bytes are free"
    yield f"== CPUs: {os.cpu_count()}, this process may use {len(os.sched_getaffinity(0))}"
    yield f"== user {os.geteuid()}"


def _log() -> str:
    """Return the last lines of crispd's log from the journal."""
    program = shutil.which("journalctl")
    if program is None:
        return "there is no journalctl: add crispd's log yourself\n"
    command = [program, "-u", "crispd", "-n", str(_LOG_LINES), "--no-pager", "-o", "short-iso-precise"]
    return subprocess.run(command, capture_output=True, text=True, timeout=_LOG_SECONDS, check=False).stdout
