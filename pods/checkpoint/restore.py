"""Makes containers from a checkpoint, as CRI-O does: the request's image is an archive made by CheckpointContainer.

The archive is a file on the node, or the layer of an image that is marked by an annotation, as buildah(1) sets it. It
holds the image of the old container, its config.json and the changes in its root. The request gives the rest: names,
labels, volumes, limits, the pod and thereby the network.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import stat
import tarfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from image.documents import decode
from image.errors import InvalidImage
from image.registry.authfile import NO_LOGINS
from image.tasks import opened
from pods.checkpoint import members
from pods.errors import FailedPrecondition, InvalidArgument, NotFound, Unimplemented
from pods.handlers import BUILT_IN
from pods.security.user_namespaces import mappings_of
from runtime import validation
from runtime.criu.describe import DESCRIPTORS
from runtime.errors import RuntimeCoreError, SpecError
from runtime.spec.parse import parse, spelled
from runtime.spec.values import Linux, Spec, is_bind

if TYPE_CHECKING:
    from image.model import Image
    from image.store import ImageStore
    from pods.model import ContainerConfig, Sandbox

ANNOTATIONS: Final = ("org.criu.checkpoint.container.name", "io.kubernetes.cri-o.annotations.checkpoint.name")
_FIELD: Final = "config.image.image"
_NAMES: Final = (members.IMAGE_ID, members.IMAGE_REF, members.IMAGE_NAME)
_LARGEST_DOCUMENT: Final = 16 << 20
_PIECE: Final = 1 << 20
# Members of `process` that the processes bring from the checkpoint, whatever the request or the image says.
_PROCESS: Final = ("terminal", "user", "args", "env", "cwd", "capabilities", "noNewPrivileges", "rlimits")
_LINUX: Final = ("seccomp", "maskedPaths", "readonlyPaths")
_RLIMIT: Final = ("type", "hard", "soft")
_NAMESPACES: Final = ("network", "pid")  # criu either joins or makes them; it cannot exchange one for the other


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An archive unpacked in `directory`, and the image of the container that it was made of."""

    directory: Path
    base: Image
    base_name: str
    document: dict[str, Any]  # the container's config.json
    image_id: str = ""  # the image that holds the archive; "" for a file

    def wanted(self, config: ContainerConfig) -> ContainerConfig:
        """Return the request, with the members that the checkpoint decides replaced."""
        process = self.document["process"]
        return msgspec.structs.replace(
            config, command=tuple(process["args"]), args=(), working_dir=process.get("cwd", "/"),
            tty=process.get("terminal", False),
        )  # fmt: skip

    def adapt(self, document: dict[str, Any]) -> list[str]:
        """Copy the processes' properties into the new container's config.json. Returns the mounts that are left out.

        Raises InvalidArgument for a difference between old and new container that criu cannot bridge.
        """
        old = self.document
        for name in _NAMESPACES:
            was, now = (_has_path(each, name) for each in (old, document))
            if was != now:
                kinds = {True: "the pod's", False: "its own", None: "the host's"}
                raise InvalidArgument(
                    f"config.linux.security_context.namespace_options: the checkpointed container had {kinds[was]} "
                    f"{name} namespace, the new one has {kinds[now]}; it must be the same"
                )
        theirs = {mount["destination"] for mount in old["mounts"] if _is_bind(mount)}
        binds = [mount["destination"] for mount in document["mounts"] if _is_bind(mount)]
        if missing := sorted(theirs.difference(binds)):
            raise InvalidArgument(
                f"config.mounts: the checkpointed container had mounts at {', '.join(missing)}: add them to the request"
            )
        ignored = [destination for destination in binds if destination not in theirs]
        document["mounts"] = [one for one in document["mounts"] if one["destination"] not in ignored]
        document["process"].update({name: old["process"][name] for name in _PROCESS if name in old["process"]})
        for name in _LINUX:
            document["linux"].pop(name, None)
            if name in old["linux"]:
                document["linux"][name] = old["linux"][name]
        document["root"]["readonly"] = old["root"].get("readonly", False)
        return ignored


class _Annotated(msgspec.Struct, frozen=True):
    annotations: dict[str, str] | None = None


def is_archive(name: str) -> bool:
    """Return whether an image's name is a path."""
    return name.startswith("/")


def may_be_checkpoint(image: Image, images: ImageStore) -> bool:
    """Return whether the image's topmost layer looks like a checkpoint."""
    return os.path.exists(f"{images.layers(image)[0]}/{members.SPEC}")


async def is_checkpoint(image: Image, images: ImageStore) -> bool:
    """Return whether an image that looks like a checkpoint is one, by its manifest."""
    manifest, _configuration = await images.documents(image)
    annotations = decode(manifest, _Annotated).annotations or {}
    return any(name in annotations for name in ANNOTATIONS)


def check(sandbox: Sandbox) -> None:
    """Raise Unimplemented if containers cannot be restored in this pod."""
    if sandbox.runtime_handler not in BUILT_IN:
        raise Unimplemented(f"{_FIELD}: only crisp's own runtime handler restores checkpoints")
    if mappings_of(sandbox.config) is not None:
        raise Unimplemented(f"{_FIELD}: a checkpoint cannot be restored in a pod with user namespaces")


async def unpack(path: str, directory: Path, images: ImageStore) -> None:
    """Unpack the archive at `path` into the new `directory`.

    The archive must be writable by root only: its author decides what the restored processes do, with all their rights.

    Raises NotFound, InvalidArgument, FailedPrecondition, and ImageError if the disk is full.
    """
    descriptor = await opened(partial(open_trusted, path, _FIELD), os.close)
    try:
        directory.mkdir(parents=True, mode=0o700)
        await images.unpack_archive(descriptor, os.fstat(descriptor).st_size, directory)
    except InvalidImage as error:
        raise InvalidArgument(f"{_FIELD}: checkpoint {path!r}: {error}") from error
    finally:
        os.close(descriptor)


def open_trusted(path: str, field: str) -> int:
    """Open a checkpoint's file, which only root may be able to write. Raises NotFound, FailedPrecondition."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise NotFound(f"{field}: checkpoint {path!r}: {error.strerror}") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_uid != 0 or status.st_mode & 0o022:
        os.close(descriptor)
        raise FailedPrecondition(
            f"{field}: checkpoint {path!r} must be a regular file that only root can write: chown root, chmod go-w"
        )
    return descriptor


async def read(directory: Path, images: ImageStore, image_id: str = "") -> Checkpoint:
    """Read an unpacked archive, and pull the image of its container if it is missing.

    For a file, which is root's own, the pull uses the node's logins. For an archive in an image it uses none: the
    image's author must not gain what the node may read.

    Raises InvalidArgument if it is no checkpoint, and what a pull raises.
    """
    described, document = await asyncio.to_thread(_documents, directory)
    base = next((found for key in _NAMES
                 if (found := images.find(described[key]))), None)  # fmt: skip
    name = described[members.IMAGE_NAME] or described[members.IMAGE_REF]
    if base is None:
        if not name:
            raise InvalidArgument(f"{_FIELD}: {members.CONFIG} does not name the container's image")
        base = await images.pull(name, auth_file=NO_LOGINS if image_id else None)
    return Checkpoint(directory, base, name or base.id, document, image_id)


def _documents(directory: Path) -> tuple[dict[str, str], dict[str, Any]]:
    described = _read(directory, members.CONFIG)
    names = {key: described.get(key) or "" for key in _NAMES}
    if not all(isinstance(value, str) for value in names.values()):
        raise InvalidArgument(f"{_FIELD}: {members.CONFIG} names its image by something else than a string")
    document = _read(directory, members.SPEC)
    try:
        _check_taken(parse(document))
    except RuntimeCoreError as error:
        raise InvalidArgument(f"{_FIELD}: {members.SPEC}: {error}") from error
    _check_images(directory / members.IMAGES)
    return names, _spelled(document)


def _check_taken(spec: Spec) -> None:
    """Raise SpecError if `Checkpoint` would take over a value that no container can be started with."""
    if spec.process is None:
        raise SpecError("process", "is required")
    linux = Linux(masked_paths=spec.linux.masked_paths, readonly_paths=spec.linux.readonly_paths)
    process = replace(spec.process, scheduler=None, exec_cpu_affinity=None)
    validation.check(Spec(oci_version=spec.oci_version, root=spec.root, process=process, linux=linux))


def _spelled(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a parsed config.json with its member names in the specification's spelling, as far as they are used here.

    Members that are null are removed.
    """
    top = dict(spelled(document))
    for name in ("process", "root", "linux"):
        top[name] = _there(top.get(name))
    process = top["process"]
    process["user"] = {"uid": 0, "gid": 0} | _there(process.get("user"))
    if "rlimits" in process:
        process["rlimits"] = [{name: _there(one)[name] for name in _RLIMIT} for one in process["rlimits"]]
    top["mounts"] = [spelled(mount) for mount in top.get("mounts") or ()]
    top["linux"]["namespaces"] = [spelled(one) for one in top["linux"].get("namespaces") or ()]
    return top


def _there(document: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in spelled(document or {}).items() if value is not None}


def _check_images(directory: Path) -> None:
    """Refuse anything but plain files: a reader of criu's images would follow a link, or wait for a FIFO."""
    if not _is_plain(directory, stat.S_ISDIR):
        raise InvalidArgument(f"{_FIELD}: not a checkpoint: it has no directory {members.IMAGES}/")
    with os.scandir(directory) as found:
        for one in found:
            if not one.is_file(follow_symlinks=False):
                raise InvalidArgument(f"{_FIELD}: {members.IMAGES}/{one.name!r} is not a regular file")
            if one.name == DESCRIPTORS and one.stat(follow_symlinks=False).st_size > _LARGEST_DOCUMENT:
                name = f"{members.IMAGES}/{DESCRIPTORS}"
                raise InvalidArgument(f"{_FIELD}: {name} is larger than {_LARGEST_DOCUMENT} bytes")


def _read(directory: Path, name: str) -> dict[str, Any]:
    """Read a JSON object from the archive. Links are not followed: they may lead anywhere."""
    if not _is_plain(directory / name, stat.S_ISREG):
        raise InvalidArgument(f"{_FIELD}: not a checkpoint: it has no file {name}")
    with open(directory / name, "rb") as file:
        text = file.read(_LARGEST_DOCUMENT + 1)
    try:
        found = json.loads(text) if len(text) <= _LARGEST_DOCUMENT else None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidArgument(f"{_FIELD}: {name} is not a JSON object")
    return found


async def write_changes(checkpoint: Checkpoint, upper: Path, images: ImageStore) -> None:
    """Apply the old container's changes to a new writable layer. Raises InvalidArgument, ImageError."""
    changes = checkpoint.directory / members.CHANGES
    if not _is_plain(changes, stat.S_ISREG):
        return
    deleted = await asyncio.to_thread(_whiteouts, checkpoint.directory)
    size = len(deleted) + changes.stat().st_size
    await images.unpack_archive(_joined(deleted, changes), size, upper)


async def _joined(first: bytes, rest: Path) -> AsyncIterator[bytes]:
    if first:
        yield first
    with rest.open("rb") as file:
        while piece := await asyncio.to_thread(file.read, _PIECE):
            yield piece


def _whiteouts(directory: Path) -> bytes:
    """Return the deleted files as whiteouts, the beginning of a layer's tar (image-spec layer.md "Whiteouts")."""
    if not _is_plain(directory / members.DELETED, stat.S_ISREG):
        return b""
    with open(directory / members.DELETED, "rb") as file:
        text = file.read(_LARGEST_DOCUMENT)
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list | None) or not all(isinstance(name, str) and name for name in names or ()):
        raise InvalidArgument(f"{_FIELD}: {members.DELETED} is not a list of names")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in names or ():
            place, _, last = name.rstrip("/").rpartition("/")
            archive.addfile(tarfile.TarInfo(f"{place}/.wh.{last}" if place else f".wh.{last}"))
        end = archive.offset
    return buffer.getvalue()[:end]


def _is_plain(path: Path, kind: Any) -> bool:
    try:
        return bool(kind(os.lstat(path).st_mode))
    except OSError:
        return False


def _has_path(document: Mapping[str, Any], kind: str) -> bool | None:
    """Return whether the namespace is joined by path; None if the container has none of that kind."""
    found = next((one for one in document["linux"].get("namespaces", ()) if one["type"] == kind), None)
    return None if found is None else bool(found.get("path"))


def _is_bind(mount: Mapping[str, Any]) -> bool:
    return is_bind(mount.get("type") or "", mount.get("options") or ())
