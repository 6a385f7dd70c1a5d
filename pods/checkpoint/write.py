"""CheckpointContainer: archives a running container, which goes on running (Kubernetes' forensic checkpointing).

criu(8) dumps the processes. `members.py` names the files of the archive.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import io
import json
import logging
import os
import shutil
import tarfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pods import log_fields, log_place
from pods.cgroups.places import container_cgroup
from pods.checkpoint import members
from pods.checkpoint.changes import add_file, buffered
from pods.checkpoint.changes import write_changes as _write_changes
from pods.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, PodError
from pods.model import Container
from runtime.cgroups import Cgroup, Hierarchies
from runtime.criu import worker as criu
from runtime.criu.describe import describe
from runtime.criu.pids import PROCESSES, highest
from runtime.errors import NotSupported, RuntimeCoreError
from runtime.logs.place import open_to_read
from runtime.spec.parse import parse
from runtime.spec.values import Spec

if TYPE_CHECKING:
    from pods.inflight import Background
    from pods.model import Sandbox
    from pods.settings import NodeSettings
    from pods.state.memory import State

_log = logging.getLogger("crisp.pods")


class Checkpoints:
    """Writes archives; one at a time for each container."""

    def __init__(self, state: State, background: Background) -> None:
        self._state = state
        self._background = background

    async def checkpoint(self, container_id: str, location: str, timeout: int) -> None:
        """Write the archive to the file `location`, within `timeout` seconds; 0 means no limit.

        Raises NotFound, InvalidArgument, DeadlineExceeded, PodError, and FailedPrecondition if it does not run or criu
        is not installed.
        """
        found = self._state.find_container(container_id).container.id
        target = Path(location)
        if not target.parent.is_dir():
            raise InvalidArgument(f"location: {str(target.parent)!r} is not a directory")
        await self._background.shielded(self._checkpoint(found, target, timeout))

    async def _checkpoint(self, container_id: str, target: Path, timeout: int) -> None:
        async with self._state.lock(container_id):
            container = self._state.running_container(container_id)
            sandbox = self._state.find_sandbox(container.sandbox_id).sandbox
            settings = self._state.settings
            work = settings.container_root(container_id) / "checkpoint"
            deadline = time.monotonic() + timeout if timeout else None
            try:
                await asyncio.to_thread(write_archive, settings, sandbox, container, work, target, deadline)
            except TimeoutError as error:
                reason = f"checkpoint container {container_id}: did not finish within {timeout} s"
                raise DeadlineExceeded(reason) from error
            except NotSupported as error:
                raise FailedPrecondition(f"checkpoint container {container_id}: {error}") from error
            except (RuntimeCoreError, OSError, ValueError) as error:
                raise PodError(f"checkpoint container {container_id}: {error}") from error
            finally:
                await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)
        _log.info("container checkpointed", extra=log_fields.of_container(container) | {"location": str(target)})


def write_archive(
    settings: NodeSettings,
    sandbox: Sandbox,
    container: Container,
    work: Path,
    target: Path,
    deadline: float | None,
) -> int:
    """Checkpoint a running container into the file `target`. It works in the directory `work` and leaves that there.

    `deadline` is of time.monotonic(). Returns the largest pid of the container's processes in their PID namespace.
    Raises RuntimeCoreError, OSError, TimeoutError.
    """
    criu.find()
    root, bundle = settings.container_root(container.id), settings.bundle_dir(container.id)
    cgroup = container_cgroup(sandbox, container.id)
    shutil.rmtree(work, ignore_errors=True)  # left by a killed daemon
    (work / members.IMAGES).mkdir(parents=True, mode=0o700)
    text = (bundle / "config.json").read_bytes()
    _dump(container.pid, parse(json.loads(text)), cgroup, work, deadline)
    with open(work / members.IMAGES / PROCESSES, "rb") as file:
        last_pid = highest(file.read())
    parts = {
        members.SPEC: text,
        members.CONFIG: json.dumps(_description(container)).encode(),
        members.DELETED: json.dumps(_write_changes(root / "upper", work / members.CHANGES, deadline)).encode(),
    }
    new = target.with_name(f".{target.name}.new")
    try:
        with buffered(new, deadline) as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
                for name, content in parts.items():
                    _add(archive, name, content)
                for name in (members.IMAGES, members.CHANGES, members.CRIU_LOG):
                    archive.add(work / name, name)
                if container.log_path:
                    _add_log(archive, container.log_path, sandbox.config.log_directory)
            file.flush()
            os.fsync(file.fileno())
        os.rename(new, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        raise
    return last_pid


def _dump(pid: int, spec: Spec, cgroup_path: str, work: Path, deadline: float | None) -> None:
    cgroup = Cgroup.at(Hierarchies.detect(), cgroup_path)
    with contextlib.ExitStack() as opened:
        fds = []
        for directory in (work / members.IMAGES, work):
            fds.append(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            opened.callback(os.close, fds[-1])
        asked: dict[str, criu.Value] = {
            "pid": pid,
            "images_dir_fd": fds[0],
            "work_dir_fd": fds[1],
            "leave_running": True,
            "tcp_established": True,
            "file_locks": True,
            "orphan_pts_master": True,
            "manage_cgroups": True,
            "manage_cgroups_mode": criu.CGROUP_MODES["soft"],
            "freeze_cgroup": cgroup.freezer_directory(),
            "external": describe(pid, spec, cgroup, str(work / members.IMAGES)),
        }
        if deadline is not None:  # criu gives up after ten seconds if it cannot stop all processes, unless told so
            asked["timeout"] = max(1, int(deadline - time.monotonic()))
        criu.Worker(deadline=deadline).call(criu.DUMP, asked, str(work / members.CRIU_LOG))


def _description(container: Container) -> dict[str, Any]:
    image = container.config.image
    return {
        "id": container.id,
        "name": container.config.metadata.name,
        members.IMAGE_ID: container.image_id,
        members.IMAGE_REF: container.image_ref,
        members.IMAGE_NAME: image.user_specified_image or image.image,
        "runtime": "crisp",
        "createdTime": _time(container.created_at),
        "checkpointedTime": datetime.datetime.now(datetime.UTC).isoformat(),
        "restored": False,
    }


def _time(nanoseconds: int) -> str:
    return datetime.datetime.fromtimestamp(nanoseconds / 1e9, datetime.UTC).isoformat()


def _add_log(archive: tarfile.TarFile, path: str, log_directory: str) -> None:
    """Add the log up to its present end. Leave it out if it is gone or no regular file (others can replace it)."""
    try:
        file = os.fdopen(open_to_read(path, log_place.trusted(log_directory)), "rb")
    except OSError as error:
        _log.warning("log could not be added to the checkpoint", extra={"log": path, "error": error.strerror})
        return
    with file:
        add_file(archive, members.LOG, file)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o600
    archive.addfile(member, io.BytesIO(content))
