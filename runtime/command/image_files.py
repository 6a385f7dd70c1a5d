"""Flags, criu options and directories that `checkpoint` and `restore` share.

The file names are runc's, so each can restore what the other has written.
"""

from __future__ import annotations

import os

from linux.tables import NAMESPACE_FLAGS
from runtime.command.flags import Flag, Options, UsageError
from runtime.criu import worker as criu
from runtime.errors import NotSupported, failing
from runtime.light import contextlib, dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

FLAGS: Final = (
    Flag("image-path", argument="DIR", help="directory of criu's image files (default: ./checkpoint)"),
    Flag("work-path", argument="DIR", help="directory of criu's log and statistics (default: --image-path)"),
    Flag("tcp-established", help="include open TCP connections"),
    Flag("ext-unix-sk", help="include unix sockets connected to processes outside the container"),
    Flag("shell-job", help="include a terminal that belongs to the caller"),
    Flag("file-locks", help="include file locks"),
    Flag("manage-cgroups-mode", argument="MODE", help="child cgroups: soft (default), full, strict or ignore"),
    Flag("empty-ns", argument="KIND", help="keep this namespace without its contents: network"),
    Flag("auto-dedup", help="remove from the parent's images the pages that these contain too"),
    Flag("lazy-pages", help="not supported"),
)
_SWITCHES: Final = ("tcp-established", "ext-unix-sk", "shell-job", "file-locks", "auto-dedup")


@dataclass(frozen=True, slots=True)
class Directories:
    """`images` and `work` are open descriptors, `log` is the path of criu's log."""

    images: int
    work: int
    path: str
    log: str

    @classmethod
    def open(cls, options: Options, log: str, undo: contextlib.ExitStack, *, make: bool) -> Directories:
        """Open the directories that the flags name. Raises OperationFailed."""
        images = os.path.abspath(options.text("image-path", "checkpoint"))
        work = os.path.abspath(options.text("work-path", images))
        fds = []
        for path in (images, work):
            with failing("open", path):
                if make or path != images:
                    os.makedirs(path, 0o700, exist_ok=True)
                fds.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            undo.callback(os.close, fds[-1])
        return cls(fds[0], fds[1], images, os.path.join(work, log))


def criu_options(options: Options, directories: Directories) -> dict[str, criu.Value]:
    """Return the criu options that both commands have. Raises UsageError, NotSupported."""
    mode = options.text("manage-cgroups-mode", "soft")
    if mode not in criu.CGROUP_MODES:
        raise UsageError(f"--manage-cgroups-mode: expected one of {', '.join(criu.CGROUP_MODES)}, got {mode!r}")
    if options.text("empty-ns", "network") != "network":
        raise UsageError(f"--empty-ns: expected network, got {options.text('empty-ns')!r}")
    if options.switch("lazy-pages"):
        raise NotSupported("use", "--lazy-pages", "crisp-oci writes and reads only whole images")
    found: dict[str, criu.Value] = {
        "images_dir_fd": directories.images,
        "work_dir_fd": directories.work,
        "manage_cgroups": True,
        "manage_cgroups_mode": criu.CGROUP_MODES[mode],
        "orphan_pts_master": True,
        "notify_scripts": True,
    }
    found.update({name.replace("-", "_"): True for name in _SWITCHES if options.switch(name)})
    if options.text("empty-ns"):
        found["empty_ns"] = NAMESPACE_FLAGS["network"]
    return found
