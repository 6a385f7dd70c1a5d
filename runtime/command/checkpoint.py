"""`crisp-oci checkpoint`: a container's processes as files, by criu(8)."""

from __future__ import annotations

import contextlib
import os
import stat

from runtime import criu
from runtime.command import removal
from runtime.command.context import Context
from runtime.command.flags import Flag, Options
from runtime.command.image_files import DESCRIPTORS, NETWORK, Directories, criu_options, host_binds
from runtime.command.image_files import FLAGS as SHARED
from runtime.command.operands import only
from runtime.command.record import Record
from runtime.command.removal import current_status
from runtime.errors import NotSupported, RuntimeCoreError, failing
from runtime.light import json
from runtime.rootfs import open_in_root
from runtime.spec import Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

FLAGS: Final = (
    *SHARED,
    Flag("leave-running", help="let the container go on"),
    Flag("pre-dump", help="only its memory, and let it go on; a later checkpoint has this for --parent-path"),
    Flag("parent-path", argument="DIR", help="earlier images, as a path from --image-path: write what changed since"),
    Flag("tcp-skip-in-flight", help="drop TCP connections that are not made yet"),
    Flag("link-remap", help="also open files that have no name any more, by giving them one for the while"),
    Flag("page-server", argument="ADDRESS", help="refused"),
    Flag("status-fd", argument="N", help="refused"),
)
ARGUMENTS: Final = "ID"
_LOG: Final = "dump.log"


def run(context: Context, options: Options, operands: list[str]) -> int:
    id = only(operands, "ID")
    for name in ("page-server", "status-fd"):
        if options.text(name):
            raise NotSupported("use", f"--{name}", "only whole images are written and read")
    if context.rootless:
        raise NotSupported("checkpoint", id, "criu needs the machine's root")
    entry = context.store.existing(id)
    with entry.locked(), contextlib.ExitStack() as undo:
        record = entry.load()
        found = current_status(entry, record)
        if found not in ("running", "paused"):
            raise RuntimeCoreError(f"cannot checkpoint container {id}: it is {found}")
        spec = entry.spec()
        directories = Directories.open(options, _LOG, undo, make=True)
        stays = options.switch("leave-running") or options.switch("pre-dump")
        _dump(options, directories, record, spec)
        if not stays:
            removal.destroy(entry, record, context.log)
    return 0


def _dump(options: Options, directories: Directories, record: Record, spec: Spec) -> None:
    streams = _streams(record.pid)
    with failing("write", DESCRIPTORS), open(os.path.join(directories.path, DESCRIPTORS), "w") as file:
        file.write(json.dumps(streams))
    asked = {
        **criu_options(options, directories),
        "pid": record.pid,
        "root": record.rootfs,
        "external": _external(record.pid, spec, streams),
    }
    if record.cgroup:
        asked["freeze_cgroup"] = record.group().freezer_directory()
    for name in ("leave-running", "tcp-skip-in-flight", "link-remap"):
        if options.switch(name):
            asked[name.replace("-", "_")] = True
    if options.text("parent-path"):
        asked["parent_img"] = options.text("parent-path")
    kind = criu.DUMP
    if options.switch("pre-dump"):
        kind, asked["track_mem"] = criu.PRE_DUMP, True
    criu.Worker().call(kind, asked, directories.log, lambda note: None)


def _streams(pid: int) -> list[str]:
    """What its standard streams are, in criu's words where they are the host's."""
    mounts = _mount_ids(pid)
    return [_stream(pid, fd, mounts) for fd in range(3)]


def _stream(pid: int, fd: int, mounts: set[int]) -> str:
    try:
        link = os.readlink(f"/proc/{pid}/fd/{fd}")
        status = os.stat(f"/proc/{pid}/fd/{fd}")
        with open(f"/proc/{pid}/fdinfo/{fd}") as file:
            mount = next(int(line.split()[1]) for line in file if line.startswith("mnt_id:"))
    except OSError:  # the container has closed it
        return "/dev/null"
    if stat.S_ISREG(status.st_mode) and mount not in mounts:
        return f"file[{mount:x}:{status.st_ino:x}]"
    return link


def _mount_ids(pid: int) -> set[int]:
    with failing("read mounts of", f"process {pid}"), open(f"/proc/{pid}/mountinfo") as file:
        return {int(line.split()[0]) for line in file}


def _external(pid: int, spec: Spec, streams: list[str]) -> list[str]:
    found = [f"mnt[{_mount_point(pid, destination)}]:{destination}" for destination, _source in host_binds(spec)]
    found += [stream for stream in streams if stream.startswith("file[")]
    network = spec.linux.namespace("network")
    if network is not None and network.path:
        with failing("read", network.path):
            found.append(f"net[{os.stat(network.path).st_ino}]:{NETWORK}")
    return found


def _mount_point(pid: int, destination: str) -> str:
    """Where in the container it is, links followed."""
    with failing("find", destination):
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = open_in_root(root, destination, os.O_PATH | os.O_CLOEXEC)
        finally:
            os.close(root)
        try:
            return os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
