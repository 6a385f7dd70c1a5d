"""Implements `crisp-oci checkpoint`: writes a container's processes to files with criu(8)."""

from __future__ import annotations

from runtime.command import image_files, removal
from runtime.command.flags import Flag, Options
from runtime.command.image_files import Directories, criu_options
from runtime.command.invocation import Context, only
from runtime.command.record import Record
from runtime.command.removal import current_status
from runtime.criu import worker as criu
from runtime.criu.describe import describe
from runtime.errors import NotSupported, RuntimeCoreError
from runtime.light import contextlib
from runtime.spec.values import Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

FLAGS: Final = (
    *image_files.FLAGS,
    Flag("leave-running", help="keep the container running"),
    Flag("pre-dump", help="dump only the memory and keep it running, for a later checkpoint's --parent-path"),
    Flag("parent-path", argument="DIR", help="earlier images, relative to --image-path: write only changes since then"),
    Flag("tcp-skip-in-flight", help="drop TCP connections that are not established yet"),
    Flag("link-remap", help="include open files that were deleted, by a temporary link"),
    Flag("page-server", argument="ADDRESS", help="not supported"),
    Flag("status-fd", argument="N", help="not supported"),
)
ARGUMENTS: Final = "ID"
_LOG: Final = "dump.log"


def run(context: Context, options: Options, operands: list[str]) -> int:
    id = only(operands, "ID")
    for name in ("page-server", "status-fd"):
        if options.text(name):
            raise NotSupported("use", f"--{name}", "crisp-oci writes and reads only whole images")
    if context.rootless:
        raise NotSupported("checkpoint", id, "criu needs root on the host")
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
    cgroup = record.group() if record.cgroup else None
    asked = {
        **criu_options(options, directories),
        "pid": record.pid,
        "root": record.rootfs,
        "external": describe(record.pid, spec, cgroup, directories.path),
    }
    if cgroup is not None:
        asked["freeze_cgroup"] = cgroup.freezer_directory()
    for name in ("leave-running", "tcp-skip-in-flight", "link-remap"):
        if options.switch(name):
            asked[name.replace("-", "_")] = True
    if options.text("parent-path"):
        asked["parent_img"] = options.text("parent-path")
    kind = criu.DUMP
    if options.switch("pre-dump"):
        kind, asked["track_mem"] = criu.PRE_DUMP, True
    criu.Worker().call(kind, asked, directories.log)
