"""Builds a container's file system tree by descriptors. No path inside the container is resolved as a string.

There are three phases, because a container's mount namespace starts as a copy of an almost empty one:

1. `mount_sources.open_sources`, in the host's mount namespace, opens bind sources and disks as detached mounts;
2. `Rootfs.attach` and `Rootfs.populate`, in the container's, put the tree together below the root's descriptor;
3. `Rootfs.pivot` and `Rootfs.restrict` make it `/`, and cover masked and read-only paths.

Image content is hostile: every target is opened with openat2(2) RESOLVE_IN_ROOT, and `/proc` and `/sys` must not be
symbolic links (runc's CVE-2019-19921 and CVE-2021-30465 were such races).
"""

from __future__ import annotations

import errno
import os
import stat

from linux import empty_root
from linux import syscalls as sys
from linux.resolve import open_inside
from runtime.errors import OperationFailed, SpecError, WrongMountPoint, failing
from runtime.light import replace
from runtime.namespaces.user import UserNamespaces
from runtime.rootfs import bind_mounts, copyup
from runtime.rootfs.mount_sources import CgroupView, new_filesystem
from runtime.rootfs.plan import ROOTFS_PROPAGATION, MountPlan, cleared
from runtime.spec import values as oci
from runtime.spec.devices import DEFAULT_DEVICES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Final

DEVICE_TYPES: Final = {"c": stat.S_IFCHR, "u": stat.S_IFCHR, "b": stat.S_IFBLK, "p": stat.S_IFIFO}
LINKS: Final = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)
_LOST: Final = (sys.MS_SHARED, sys.MS_UNBINDABLE)
ATTACH_POINT: Final = "/rootfs"  # the one directory of the empty mount namespace


def enter_empty_root() -> None:
    """Enter a new mount namespace that contains one empty read-only tmpfs. Raises OSError."""
    empty_root.enter([ATTACH_POINT], inodes=4)
    sys.mount(None, "/", None, sys.MS_REMOUNT | sys.MS_BIND | sys.MS_RDONLY)


class Rootfs:
    """The tree below the mount open at `root`; owns that descriptor.

    The caller is root of the machine. If `users` has a user namespace, new files belong to that namespace's root.
    """

    def __init__(self, root: int, users: UserNamespaces | None = None) -> None:
        self.root = root
        self._users = users or UserNamespaces()
        self._container = container = self._users.mappings
        self._owner = container.root if container else (0, 0)
        # Mounts, with attributes that forbid making mount points, and their destination.
        self._until_finished: list[tuple[int, int, str]] = []
        self.proc_contexts: list[int] = []  # opened for the container's PID namespace, if we are not in it
        # Clones of host paths, by path: what root of a user namespace cannot make or mount.
        self.host_trees: Mapping[str, int] = {}

    def attach(self, point: str = ATTACH_POINT) -> None:
        """Attach the detached root mount to the directory `point` in the caller's mount namespace."""
        with failing("attach", "rootfs"):
            sys.move_mount(self.root, sys.AT_FDCWD, point)

    def populate(
        self,
        plans: Sequence[MountPlan],
        sources: dict[int, list[int]],
        cgroups: CgroupView,
        devices: Sequence[oci.Device],
    ) -> None:
        """Make the mounts in order, then the device nodes and links in `/dev`."""
        dev_is_ours = True
        for index, plan in enumerate(plans):
            with failing(f"mount `{plan.type or plan.source}` on", plan.destination):
                try:
                    self._mount(plan, sources.get(index, ()), cgroups)
                except NotADirectoryError as error:
                    about = f"mount `{plan.source or plan.type}` on"
                    reason = "a component of that path is a file in the container"
                    raise WrongMountPoint(about, f"`{plan.destination}`", reason) from error
            dev_is_ours = dev_is_ours and not (plan.bind and plan.destination == "/dev")
        if dev_is_ours:
            self._make_devices(devices)

    def _mount(self, plan: MountPlan, sources: Sequence[int], cgroups: CgroupView) -> None:
        if plan.type in ("cgroup", "cgroup2") and not plan.bind:
            self._mount_cgroups(plan, sources, cgroups)
        elif plan.bind:
            inside = plan.inside is not None
            self._mount_bind(plan, bind_mounts.clone_inside(self.root, plan, self._users) if inside else sources[0])
        else:
            self._mount_new(plan, sources[0] if sources else None)

    def _mount_bind(self, plan: MountPlan, tree: int) -> None:
        bind_mounts.finish(plan, tree)
        is_directory = stat.S_ISDIR(os.fstat(tree).st_mode)
        self._place(tree, plan.destination, is_directory=is_directory, what=plan.source)

    def _mount_new(self, plan: MountPlan, made: int | None) -> None:
        attributes = plan.attr_set | plan.tree_attr_set
        late = attributes & (sys.MOUNT_ATTR_RDONLY | sys.MOUNT_ATTR_NOSYMFOLLOW)
        plan = replace(plan, attr_set=attributes & ~late)
        if made is not None:
            mount = made
            if plan.attr_set:
                sys.mount_setattr(mount, "", sys.AT_EMPTY_PATH, attr_set=plan.attr_set, attr_clr=cleared(plan))
        elif plan.copy_up:
            mount = self._copied_up(plan)
        elif plan.type == "sysfs" and "/sys" in self.host_trees:
            mount, late = self._mount_sysfs(replace(plan, attr_set=attributes)), 0
        elif plan.type == "tmpfs":
            mount = new_filesystem(self._with_mode(plan))
        elif plan.type == "proc" and self.proc_contexts:
            mount = new_filesystem(plan, self.proc_contexts.pop())
        else:
            mount = new_filesystem(plan)
        # An image could make /proc or /sys a symbolic link to a place where no masks are put.
        follow = plan.type not in ("proc", "sysfs")
        self._place(mount, plan.destination, is_directory=True, what=plan.type, follow=follow)
        if plan.propagation:
            flags = sys.AT_EMPTY_PATH | (sys.AT_RECURSIVE if plan.propagation_recursive else 0)
            sys.mount_setattr(mount, "", flags, propagation=plan.propagation)
        self._set_late(mount, late, plan.destination)

    def _set_late(self, mount: int, attributes: int, destination: str) -> None:
        """Let `restrict` set the attributes, so that later mounts, devices and links can still be made below."""
        if attributes:
            self._until_finished.append((mount, attributes, destination))

    def _with_mode(self, plan: MountPlan) -> MountPlan:
        """Give a tmpfs without a mode the mode of the directory that it covers, if there is one."""
        if any(key == "mode" for key, _value in plan.data):
            return plan
        covered = self._existing(plan.destination)
        if covered is None:
            return plan
        mode = stat.S_IMODE(os.fstat(covered).st_mode)
        os.close(covered)
        return replace(plan, data=(("mode", f"{mode:o}"), *plan.data))

    def _copied_up(self, plan: MountPlan) -> int:
        """Make a new file system with a copy of the directory that it will cover."""
        covered = self.open_target(plan.destination, is_directory=True)
        try:
            self._check_kind(covered, plan.destination, is_directory=True, what=plan.type)
            mount = new_filesystem(replace(plan, attr_set=0))
            copyup.copy_tree(covered, mount, with_mode=not any(key == "mode" for key, _value in plan.data))
            if plan.attr_set:
                sys.mount_setattr(mount, "", sys.AT_EMPTY_PATH, attr_set=plan.attr_set, attr_clr=cleared(plan))
            return mount
        finally:
            os.close(covered)

    def _mount_sysfs(self, plan: MountPlan) -> int:
        """Mount a new sysfs if the container owns its network namespace, else the host's, with its restrictions."""
        try:
            return new_filesystem(plan)
        except PermissionError:
            tree = self.host_trees["/sys"]
            flags = sys.AT_EMPTY_PATH | sys.AT_RECURSIVE
            sys.mount_setattr(tree, "", flags, attr_set=plan.attr_set, propagation=sys.MS_SLAVE)
            return tree

    def _mount_cgroups(self, plan: MountPlan, trees: Sequence[int], cgroups: CgroupView) -> None:
        attrs = plan.attr_set | plan.tree_attr_set
        for tree in trees:
            sys.mount_setattr(tree, "", sys.AT_EMPTY_PATH, attr_set=attrs, propagation=sys.MS_PRIVATE)
        if cgroups.directories and cgroups.directories[0][0] == "":
            self._place(trees[0], plan.destination, is_directory=True, what=plan.type)
            return
        base = new_filesystem(MountPlan(plan.destination, "tmpfs", "tmpfs", data=(("mode", "755"),)))
        self._place(base, plan.destination, is_directory=True, what=plan.type)
        for (name, _path), tree in zip(cgroups.directories, trees, strict=True):
            os.mkdir(name, 0o755, dir_fd=base)
            sys.move_mount(tree, base, name)
        for name, target in cgroups.links:
            os.symlink(target, name, dir_fd=base)
        self._set_late(base, attrs, plan.destination)

    def _place(self, mount: int, destination: str, *, is_directory: bool, what: str, follow: bool = True) -> None:
        target = self._open_point(destination, is_directory=is_directory, follow=follow)
        try:
            self._check_kind(target, destination, is_directory=is_directory, what=what)
            sys.move_mount(mount, target)
        finally:
            os.close(target)

    def _open_point(self, path: str, *, is_directory: bool, follow: bool) -> int:
        """Open a mount point like `open_target`.

        Links of the image may lead anywhere inside, except onto /proc or /sys. A mount on those would hide them, and
        the masks would land in the wrong place.
        """
        try:
            return self.open_target(path, is_directory=is_directory, follow=False)
        except OSError as error:
            if error.errno != errno.ELOOP or not follow:
                raise
        target = self.open_target(path, is_directory=is_directory)
        if sys.filesystem_type(target) in (sys.PROC_SUPER_MAGIC, sys.SYSFS_MAGIC):
            os.close(target)
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        return target

    def _check_kind(self, target: int, destination: str, *, is_directory: bool, what: str) -> None:
        """Refuse a file on a directory and vice versa, for which the kernel would only say EINVAL."""
        if stat.S_ISDIR(os.fstat(target).st_mode) != is_directory:
            raise WrongMountPoint.of(what, destination, is_directory=is_directory)

    def open_target(self, path: str, *, is_directory: bool, follow: bool = True) -> int:
        """Open (O_PATH) a mount point inside the root. Make it and its parents if missing (0755, files 0644).

        If links of the image lead to a missing path, that path is made, inside the root.
        """
        resolve = sys.IN_ROOT | (0 if follow else sys.RESOLVE_NO_SYMLINKS)
        path = os.path.normpath("/" + path).lstrip("/") or "."
        try:
            return sys.openat2(self.root, path, os.O_PATH, resolve)
        except FileNotFoundError:
            pass

        def make(name: str, directory: int, last: bool) -> None:
            _make(directory, name, is_directory=is_directory or not last)
            self._give(name, directory)

        return open_inside(self.root, path, os.O_PATH, follow=follow, make=make)

    def _give(self, name: str, directory: int) -> None:
        if self._owner != (0, 0):
            os.chown(name, *self._owner, dir_fd=directory, follow_symlinks=False)

    def _owner_of(self, device: oci.Device) -> tuple[int, int]:
        if self._container is None:
            return device.uid or 0, device.gid or 0
        try:
            return self._container.uid(device.uid or 0), self._container.gid(device.gid or 0)
        except SpecError:
            return 0, 0  # not mapped: the container sees nobody, as for any file of a host user

    def _make_devices(self, devices: Sequence[oci.Device]) -> None:
        directory = self.open_target("/dev", is_directory=True)
        try:
            listed = {device.path for device in devices}
            for device in (*(d for d in DEFAULT_DEVICES if d.path not in listed), *devices):
                with failing("make device", device.path):
                    self._make_device(device)
            for name, target in LINKS:
                with failing("link", f"/dev/{name}"):
                    if _symlink(target, name, directory):
                        self._give(name, directory)
        finally:
            os.close(directory)

    def _make_device(self, device: oci.Device) -> None:
        if device.path in self.host_trees:
            self._place(self.host_trees[device.path], device.path, is_directory=False, what=device.path)
            return
        parent_path, name = os.path.split(device.path)
        parent = self.open_target(parent_path, is_directory=True)
        try:
            number = os.makedev(device.major, device.minor)
            mode = stat.S_IMODE(device.file_mode if device.file_mode is not None else 0o666)
            kind, owner = DEVICE_TYPES[device.type], self._owner_of(device)
            try:
                _make_node(name, parent, kind | mode, number)
            except FileExistsError:
                found = os.stat(name, dir_fd=parent, follow_symlinks=False)
                if stat.S_IFMT(found.st_mode) != kind or found.st_rdev != number:
                    raise
                if (found.st_mode, found.st_uid, found.st_gid) == (kind | mode, *owner):
                    return
                # Recreate it instead of changing it: chmod(2) by name would follow a link that replaced it meanwhile.
                os.unlink(name, dir_fd=parent)
                _make_node(name, parent, kind | mode, number)
            if owner != (0, 0):
                os.chown(name, *owner, dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(parent)

    def pivot(self) -> None:
        """Make the tree the caller's `/` and unmount everything else (pivot_root(2))."""
        with failing("pivot into", "rootfs"):
            os.fchdir(self.root)
            sys.pivot_root(".", ".")
            sys.umount2(".", sys.MNT_DETACH)
            os.chdir("/")

    def restrict(self, linux: oci.Linux, *, readonly: bool) -> None:
        """Cover masked paths, make read-only paths read-only, set the root's own propagation and read-only flag.

        After this nothing can be made below read-only mounts.
        """
        for mount, attributes, destination in self._until_finished:
            with failing("set attributes of the mount on", destination):
                sys.mount_setattr(mount, "", sys.AT_EMPTY_PATH, attr_set=attributes)
        for path in linux.readonly_paths:
            with failing("make read-only", path):
                self._make_readonly(path)
        for path in linux.masked_paths:
            with failing("mask", path):
                self._mask(path)
        if linux.rootfs_propagation:
            bits, recursive = ROOTFS_PROPAGATION[linux.rootfs_propagation]
            flags = sys.AT_EMPTY_PATH | (sys.AT_RECURSIVE if recursive else 0)
            with failing("set propagation of", "rootfs"):
                sys.mount_setattr(self.root, "", flags, propagation=bits)
        if readonly:
            with failing("make read-only", "rootfs"):
                sys.mount_setattr(self.root, "", sys.AT_EMPTY_PATH, attr_set=sys.MOUNT_ATTR_RDONLY)

    def _make_readonly(self, path: str) -> None:
        target = self._existing(path)
        if target is None:
            return
        tree = sys.open_tree(target, "", sys.AT_EMPTY_PATH | sys.OPEN_TREE_CLONE | sys.AT_RECURSIVE)
        sys.mount_setattr(tree, "", sys.AT_EMPTY_PATH, attr_set=sys.MOUNT_ATTR_RDONLY)
        sys.move_mount(tree, target)
        os.close(tree)
        os.close(target)

    def _mask(self, path: str) -> None:
        target = self._existing(path)
        if target is None:
            return
        if stat.S_ISDIR(os.fstat(target).st_mode):
            cover = new_filesystem(MountPlan(path, "tmpfs", "tmpfs", attr_set=sys.MOUNT_ATTR_RDONLY))
        else:
            cover = self._null_device()
        sys.move_mount(cover, target)
        os.close(cover)
        os.close(target)

    def _null_device(self) -> int:
        null = sys.open_in_root(self.root, "/dev/null", os.O_PATH)
        try:
            status = os.fstat(null)
            # The image or a racing container may have replaced it (CVE-2025-31133).
            if not stat.S_ISCHR(status.st_mode) or status.st_rdev != os.makedev(1, 3):
                raise OperationFailed("use", "/dev/null", errno.EINVAL)
            return sys.open_tree(null, "", sys.AT_EMPTY_PATH | sys.OPEN_TREE_CLONE)
        finally:
            os.close(null)

    def _existing(self, path: str) -> int | None:
        try:
            return sys.open_in_root(self.root, path, os.O_PATH)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise


def propagate_again(plans: Sequence[MountPlan], linux: oci.Linux) -> None:
    """Make mounts shared or unbindable again. For callers in the finished root and in the user namespace.

    When the user namespace was entered, the kernel made all shared mounts slaves (mount_namespaces(7)); they can be
    shared again. Linux 6.17 and later also forgets unbindable. Mounts that a later one covers are skipped.
    """
    wanted = [(plan.destination, plan.propagation, plan.propagation_recursive) for plan in plans]
    if linux.rootfs_propagation:
        wanted.insert(0, ("/", *ROOTFS_PROPAGATION[linux.rootfs_propagation]))
    if not any(propagation in _LOST for _destination, propagation, _recursive in wanted):
        return
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    above: list[str] = []
    for destination, propagation, recursive in reversed(wanted):
        path = os.path.normpath(destination)
        covered = any(path == other or path.startswith(f"{other}/") for other in above)
        above.append(path)
        if propagation in _LOST and not covered:
            with failing("set propagation of", destination):
                mount = sys.open_in_root(root, path, os.O_PATH)
                flags = sys.AT_EMPTY_PATH | (sys.AT_RECURSIVE if recursive else 0)
                sys.mount_setattr(mount, "", flags, propagation=propagation)
                os.close(mount)
    os.close(root)


def _make(parent: int, name: str, *, is_directory: bool) -> None:
    if is_directory:
        os.mkdir(name, 0o755, dir_fd=parent)
    else:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o644, dir_fd=parent))


def _make_node(name: str, directory: int, mode: int, number: int) -> None:
    umask = os.umask(0)
    try:
        os.mknod(name, mode, number, dir_fd=directory)
    finally:
        os.umask(umask)


def _symlink(target: str, name: str, directory: int) -> bool:
    try:
        os.symlink(target, name, dir_fd=directory)
    except FileExistsError:
        return False  # it comes from the image's /dev or from a bind mount
    return True
