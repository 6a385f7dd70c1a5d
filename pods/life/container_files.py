"""Makes a container's own files: its writable layer and the volumes that its image declares."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pods import disk_quotas
from pods.oci import image_volumes
from pods.security import user_namespaces
from pods.security.selinux import relabel
from runtime.client import ShimClient, ShimTooOld
from runtime.wire.calls import OpenRootfs

if TYPE_CHECKING:
    from pods.life.container_plan import Plan
    from runtime.namespaces.user import IDMappings
    from runtime.wire.calls import Identity


def make_layer_directories(root: Path, lower: Sequence[Path], users: IDMappings | None, limit: int) -> None:
    """Make the directories of the writable layer, with the owner and mode of the image's root directory.

    It and the volumes beside it may take `limit` bytes, 0 for any. Raises PodError, OSError.
    """
    root.mkdir(parents=True, mode=0o700, exist_ok=True)  # a checkpoint may be in it already
    disk_quotas.begin(root, limit)
    upper = f"{root}/upper"
    os.mkdir(upper)
    os.mkdir(f"{root}/work", 0o700)
    if lower:
        status = os.stat(lower[0])
        owner = status.st_uid, status.st_gid
        os.chown(upper, *(owner if users is None else (users.uid(owner[0]), users.gid(owner[1]))))
        os.chmod(upper, stat.S_IMODE(status.st_mode))


async def make_volumes(
    plan: Plan, user: Identity, users: IDMappings | None, place: Path, label: str, shim: ShimClient
) -> Mapping[str, str]:
    """Make the image's volumes that are to be mounted. Returns path in the container -> directory name in `place`.

    `user` owns what the image does not contain; `label` is for SELinux. Raises InvalidArgument, RuntimeCoreError,
    OSError.
    """
    if not plan.volumes:
        return {}
    readonly = plan.config.security.readonly_rootfs
    owner = (user.uid, user.gid) if users is None else (users.uid(user.uid), users.gid(user.gid))
    try:
        (rootfs,) = await shim.call_for_descriptors(OpenRootfs(plan.container.id))
    except ShimTooOld:
        return _make_empty_volumes(plan.volumes, place, users) if readonly else {}

    def make() -> dict[str, str]:
        try:
            made = image_volumes.make(rootfs, plan.volumes, place, owner, readonly=readonly)
        finally:
            os.close(rootfs)
        for name in made.values() if label else ():
            relabel(str(place / name), label, f"image {plan.config.image.image!r}: volumes")
        return made

    return await asyncio.to_thread(make)


def _make_empty_volumes(wanted: Mapping[str, str], place: Path, users: IDMappings | None) -> Mapping[str, str]:
    """Make volumes as an older crisp did, for a pod whose shim is of that version."""
    for name in wanted.values():
        (place / name).mkdir(parents=True)
        user_namespaces.give(place / name, users)
    return wanted
