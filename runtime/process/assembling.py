"""Writes the assembly of a container's file system tree as a list of system calls.

`runtime.rootfs.tree` does the same in a forked interpreter, and explains the order. What only the image decides is
looked up beforehand in the detached rootfs, which nobody else can change before the start: where destinations lead, and
what is missing there. A tree that the list cannot assemble raises `Obstacle`, before there is a process.
"""

from __future__ import annotations

import errno
import os
import stat
import struct

from linux import syscalls as sys
from linux.tables import SELINUX_LABEL
from runtime.errors import WrongMountPoint
from runtime.light import dataclass, replace
from runtime.process.explanations import Always, Mounting, fixed
from runtime.process.script import Script
from runtime.rootfs.mount_sources import OF_NO_PATH, CgroupView
from runtime.rootfs.plan import ROOTFS_PROPAGATION, MountPlan, cleared, cleared_exactly
from runtime.rootfs.tree import DEVICE_TYPES, LINKS, Rootfs
from runtime.spec import values as oci
from runtime.spec.devices import DEFAULT_DEVICES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Final

    from runtime.process.script import About

_STATX_BYTES, _MODE_AT, _MODE_SHIFT, _RDEV_AT = 256, 24, 32, 128
_STATX_BASIC: Final = 0x7FF
_FORMAT: Final = 0xF000 << _MODE_SHIFT
_DIRECTORY: Final = stat.S_IFDIR << _MODE_SHIFT
_CHARACTER_DEVICE: Final = stat.S_IFCHR << _MODE_SHIFT
_NULL: Final = os.makedev(1, 3)
_NO_LINKS: Final = sys.IN_ROOT | sys.RESOLVE_NO_SYMLINKS
_HOW_BYTES, _ATTR_BYTES = 24, 32
_ALL: Final = 2**64 - 1
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_LATE: Final = sys.MOUNT_ATTR_RDONLY | sys.MOUNT_ATTR_NOSYMFOLLOW
_ABSENT: Final = (errno.ENOENT, errno.ENOTDIR)
_OF_THE_KERNEL: Final = ("proc", "sysfs")


class Obstacle(Exception):
    """Why a forked interpreter must do it."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a destination leads. `mode` is that of what is there in the image; 0: to be made; -1: not known."""

    path: str
    mode: int


class Assembly:
    """The calls that attach the root, mount everything, and make the root `/`. Descriptors get predicted numbers."""

    def __init__(
        self,
        script: Script,
        plans: Sequence[MountPlan],
        root: int,
        rootfs: int,
        first_free: int,
        directories: Mapping[str, bool],
    ) -> None:
        """`root` is the rootfs in the caller, `rootfs` in the list. For `directories` see `Start`."""
        self._script = script
        self._plans = plans
        self._tree = Rootfs(root)
        self._directories = directories
        self._rootfs = rootfs
        self._next = first_free
        self._empty = script.text("")
        self._status = script.room(_STATX_BYTES)
        self._sources: dict[int, list[int]] = {}
        self._late: list[tuple[int, int, str]] = []
        self._attributes: dict[tuple[int, int, int], int] = {}
        self._hows: dict[tuple[int, int], int] = {}
        self._texts: dict[str, int] = {}
        self._places: list[_Place] = []
        for index, plan in enumerate(plans):
            self._places.append(self._find(index, plan))

    # -- what the image has -------------------------------------------------------------------------------------------

    def _find(self, index: int, plan: MountPlan) -> _Place:
        destination = plan.destination
        if destination == "/" or plan.inside is not None or plan.copy_up or plan.idmap is not None or plan.locked:
            raise Obstacle(f"of the mount on {destination}")
        if not plan.bind and plan.type not in OF_NO_PATH:
            raise Obstacle(f"the file system on {destination} has a source")
        others = [other.destination for other in self._plans[index + 1 :]]
        if any(_is_below(destination, other) or destination == other for other in others):
            raise Obstacle(f"{destination} is mounted over")
        for other, place in zip(reversed(self._plans[:index]), reversed(self._places), strict=True):
            if destination == other.destination:
                raise Obstacle(f"{destination} is mounted twice")
            if _is_below(destination, other.destination):
                if place.path != other.destination or other.bind or other.type not in ("tmpfs", "sysfs", "proc"):
                    raise Obstacle(f"{destination} is below another mount")
                if other.type != "tmpfs" and (plan.bind or plan.type not in ("cgroup", "cgroup2")):
                    raise Obstacle(f"{destination} is in a file system of the kernel")
                if plan.type == "tmpfs" and not _has_mode(plan):
                    raise Obstacle(f"the mode of {destination} is that of what it covers")
                return _Place(destination, -1 if other.type == "tmpfs" else -2)
        place = self._look_up(destination, self._kind(plan))
        if place.mode > 0 and not plan.bind and not stat.S_ISDIR(place.mode):
            raise Obstacle(f"{destination} is a file")
        if plan.type in _OF_THE_KERNEL and not plan.bind and place.path != destination:
            raise Obstacle(f"{destination} is a link")
        if any(place.path == other.path or _is_below(place.path, other.path) for other in self._places):
            raise Obstacle(f"{destination} leads below another mount")
        if any(_is_below(place.path, other) or place.path == other for other in others):
            raise Obstacle(f"{destination} is mounted over")
        return place

    def _kind(self, plan: MountPlan) -> bool | None:
        """Return whether the mount point is a directory. None if it is not known, or must be as the start finds it."""
        if plan.bind:
            return self._directories.get(plan.destination)
        return True if plan.type != "tmpfs" or _has_mode(plan) else None  # what it covers decides its mode

    def _look_up(self, destination: str, is_directory: bool | None) -> _Place:
        """Find where a destination leads in the image.

        Make it if it is missing, which takes half a millisecond that a start need not wait for; with None only what is
        above it.
        """
        try:
            try:
                found = sys.open_in_root(self._tree.root, destination, os.O_PATH)
            except FileNotFoundError:
                parent, name = os.path.split(destination)
                directory = self._tree.open_target(parent, is_directory=True)
                try:
                    if name in ("", ".", ".."):
                        raise Obstacle(f"of the mount on {destination}")
                    try:
                        os.stat(name, dir_fd=directory, follow_symlinks=False)
                    except FileNotFoundError:
                        if is_directory is None:
                            return _Place(os.path.join(_path_of(directory), name), 0)
                    else:
                        raise Obstacle(f"{destination} is a link to nothing")
                finally:
                    os.close(directory)
                found = self._tree.open_target(destination, is_directory=is_directory)
            try:
                return _Place(_path_of(found), os.fstat(found).st_mode)
            finally:
                os.close(found)
        except OSError as error:
            raise Obstacle(f"{destination} cannot be looked up") from error

    # -- calls --------------------------------------------------------------------------------------------------------

    def opening(self, name: str, *arguments: int, about: About) -> int:
        """Append a call that opens a descriptor, and return its number."""
        self._script.call(name, *arguments, about=about)
        return self._take()

    def _take(self) -> int:
        self._next += 1
        return self._next - 1

    def _close(self, fd: int, about: About) -> None:
        """Close the descriptor that was opened last."""
        assert fd == self._next - 1
        self._next = fd
        self._script.call("close", fd, about=about)

    def text(self, content: str) -> int:
        if content not in self._texts:
            self._texts[content] = self._script.text(content)
        return self._texts[content]

    def _how(self, flags: int, resolve: int) -> int:
        if (flags, resolve) not in self._hows:
            self._hows[flags, resolve] = self._script.data(struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, resolve))
        return self._hows[flags, resolve]

    def _inside(self, path: str, about: About, resolve: int = _NO_LINKS) -> int:
        """Open a path of the container's root."""
        return self.opening("openat2", *self._at(path, resolve), about=about)

    def _at(self, path: str, resolve: int) -> tuple[int, int, int, int]:
        return self._rootfs, self.text(path.lstrip("/") or "."), self._how(os.O_PATH, resolve), _HOW_BYTES

    def _set(
        self,
        mount: int,
        about: About,
        attr_set: int = 0,
        attr_clr: int = 0,
        propagation: int = 0,
        *,
        tree: bool = False,
    ) -> None:
        key = attr_set, attr_clr, propagation
        if key not in self._attributes:
            self._attributes[key] = self._script.data(struct.pack("=QQQQ", *key, 0))
        flags = sys.AT_EMPTY_PATH | (sys.AT_RECURSIVE if tree else 0)
        self._script.call("mount_setattr", mount, self._empty, flags, self._attributes[key], _ATTR_BYTES, about=about)

    def _move(self, mount: int, target: int, about: About) -> None:
        flags = sys.MOVE_MOUNT_F_EMPTY_PATH | sys.MOVE_MOUNT_T_EMPTY_PATH
        self._script.call("move_mount", mount, self._empty, target, self._empty, flags, about=about)

    def _new(self, plan: MountPlan, about: About, context: int = -1, attributes: int = 0) -> int:
        """Make a file system. Its context stays open below it, unless it was opened before."""
        if context < 0:
            context = self.opening("fsopen", self.text(plan.type), 1, about=about)
        data = ((("source", plan.source),) if plan.source else ()) + plan.data
        for key, value in data:
            kind = sys.FSCONFIG_SET_FLAG if value is None else sys.FSCONFIG_SET_STRING
            address = 0 if value is None else self.text(value)
            self._script.call("fsconfig", context, kind, self.text(key), address, 0, about=about)
        self._script.call("fsconfig", context, sys.FSCONFIG_CMD_CREATE, 0, 0, 0, about=about)
        mount = self.opening("fsmount", context, 1, attributes, about=about)
        if plan.label:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
            root = self.opening("openat", mount, self.text("."), flags, about=about)
            name, label = self.text(SELINUX_LABEL), self.text(plan.label)
            self._script.call("fsetxattr", root, name, label, len(plan.label.encode()), 0, about=about)
            self._close(root, about)
        return mount

    def _clone(self, path: str, flags: int, about: About) -> int:
        flags |= sys.OPEN_TREE_CLONE | sys.OPEN_TREE_CLOEXEC
        return self.opening("open_tree", sys.AT_FDCWD, self.text(path), flags, about=about)

    def _is_directory(self, fd: int, about: About) -> tuple[int, int]:
        """Append a look at what is open. Returns the ways for a directory and for anything else."""
        script = self._script
        script.call("statx", fd, self._empty, sys.AT_EMPTY_PATH, _STATX_BASIC, self._status, about=about)
        look = script.look(self._status + _MODE_AT, _FORMAT, _DIRECTORY)
        return script.take(look.zero), script.take(look.positive)

    # -- the host's side ----------------------------------------------------------------------------------------------

    def open_sources(self, cgroups: CgroupView, trees: Mapping[str, int], pid_namespace: int) -> list[int]:
        """Append the opening of what the mounts take from the host. Returns contexts for mounts of proc.

        `trees` has the numbers in the list of the detached mounts that are ready to use.
        """
        contexts = []
        for plan in self._plans:
            if plan.type == "proc" and not plan.bind and pid_namespace >= 0:
                about = "open", "proc file system of a PID namespace"
                contexts.append(self.opening("fsopen", self.text("proc"), 1, about=about))
                key = self.text("pidns")
                arguments = contexts[-1], sys.FSCONFIG_SET_FD, key, 0, pid_namespace
                self._script.call("fsconfig", *arguments, about=about)
        for index, plan in enumerate(self._plans):
            if plan.bind and plan.source in trees:
                self._sources[index] = [trees[plan.source]]
            elif plan.bind:
                about = "open bind mount source", plan.source
                self._sources[index] = [self._clone(plan.source, sys.AT_RECURSIVE if plan.recursive else 0, about)]
            elif plan.type in ("cgroup", "cgroup2"):
                about = "open cgroups for", plan.destination
                self._sources[index] = [self._clone(path, 0, about) for _name, path in cgroups.directories]
        return contexts

    def enter(self, template: int, attach_point: str) -> None:
        """Append the entry into a copy of the mount namespace open at `template`, and attach the root there."""
        script = self._script
        about = "make", "mount namespace"
        script.call("setns", template, sys.CLONE_NEWNS, about=about)
        script.call("unshare", sys.CLONE_NEWNS, about=about)
        arguments = self._rootfs, self._empty, sys.AT_FDCWD, self.text(attach_point), sys.MOVE_MOUNT_F_EMPTY_PATH
        script.call("move_mount", *arguments, about=("attach", "rootfs"))

    # -- mounts -------------------------------------------------------------------------------------------------------

    def populate(self, cgroups: CgroupView, contexts: list[int], devices: Sequence[oci.Device]) -> None:
        """Append the mounts in order, then the device nodes and links in `/dev`."""
        for index, (plan, place) in enumerate(zip(self._plans, self._places, strict=True)):
            about = Mounting(plan.source, plan.type, plan.destination)
            if plan.type in ("cgroup", "cgroup2") and not plan.bind:
                self._mount_cgroups(plan, place, self._sources[index], cgroups, about)
            elif plan.bind:
                self._finish_bind(plan, self._sources[index][0], about)
                self._place(self._sources[index][0], plan, place, about)
            else:
                attributes = plan.attr_set | plan.tree_attr_set
                context = contexts.pop() if plan.type == "proc" and contexts else -1
                wanted = self._with_mode(plan, place)
                mount = self._new(wanted, about, context, attributes & ~_LATE)
                self._place(mount, plan, place, about)
                if plan.propagation:
                    self._set(mount, about, propagation=plan.propagation, tree=plan.propagation_recursive)
                if attributes & _LATE:
                    self._late.append((mount, attributes & _LATE, plan.destination))
        self._make_devices(devices)

    def _with_mode(self, plan: MountPlan, place: _Place) -> MountPlan:
        if plan.type != "tmpfs" or _has_mode(plan) or place.mode <= 0:
            return plan
        return replace(plan, data=(("mode", f"{stat.S_IMODE(place.mode):o}"), *plan.data))

    def _finish_bind(self, plan: MountPlan, tree: int, about: About) -> None:
        if plan.exact:
            self._set(tree, about, plan.attr_set, cleared_exactly(plan))
        elif plan.attr_set or plan.attr_clear:
            self._set(tree, about, plan.attr_set, cleared(plan))
        if plan.tree_attr_set or plan.tree_attr_clear:
            self._set(tree, about, plan.tree_attr_set, plan.tree_attr_clear, tree=True)
        recursive = plan.propagation_recursive or not plan.propagation
        self._set(tree, about, propagation=plan.propagation or sys.MS_SLAVE, tree=recursive)

    def _mount_cgroups(
        self, plan: MountPlan, place: _Place, trees: Sequence[int], cgroups: CgroupView, about: About
    ) -> None:
        script = self._script
        attributes = plan.attr_set | plan.tree_attr_set
        for tree in trees:
            self._set(tree, about, attributes, propagation=sys.MS_PRIVATE)
        if cgroups.directories and cgroups.directories[0][0] == "":
            self._place(trees[0], plan, place, about)
            return
        base = self._new(MountPlan(plan.destination, "tmpfs", "tmpfs", data=(("mode", "755"),)), about)
        self._place(base, plan, place, about)
        for (name, _path), tree in zip(cgroups.directories, trees, strict=True):
            script.call("mkdirat", base, self.text(name), 0o755, about=about)
            script.call(
                "move_mount", tree, self._empty, base, self.text(name), sys.MOVE_MOUNT_F_EMPTY_PATH, about=about
            )
        for name, target in cgroups.links:
            script.call("symlinkat", self.text(target), base, self.text(name), about=about)
        if attributes:
            self._late.append((base, attributes, plan.destination))

    def _place(self, mount: int, plan: MountPlan, place: _Place, about: About) -> None:
        if place.mode == -1:
            for above in _above(place.path, self._plans):
                self._make(above, about, again=True)
        if place.mode in (0, -1):
            if plan.bind:
                directory, other = self._is_directory(mount, about)
                self._script.put(directory)
                self._make(place.path, about, again=place.mode < 0)
                made = self._script.open_ways()
                self._script.put(other)
                self._make(place.path, about, again=place.mode < 0, is_directory=False)
                self._script.put(*made)
            else:
                self._make(place.path, about, again=place.mode < 0)
        elif place.mode > 0 and plan.bind:
            self._require_kind(mount, plan, about, is_directory=stat.S_ISDIR(place.mode))
        target = self._inside(place.path, about)
        self._move(mount, target, about)
        self._close(target, about)

    def _require_kind(self, mount: int, plan: MountPlan, about: About, *, is_directory: bool) -> None:
        ways = self._is_directory(mount, about)
        right, wrong = ways if is_directory else reversed(ways)
        error = WrongMountPoint.of(plan.source, plan.destination, is_directory=not is_directory)
        self._script.put(wrong)
        self._script.fail(Always.error_of(error))
        self._script.put(right)

    def _make(self, path: str, about: About, *, again: bool = False, is_directory: bool = True) -> None:
        """Append the making of a file or directory in a directory that exists; with `again` if it is missing."""
        above, name = os.path.split(path)
        parent = self._inside(above, about)
        allow = (errno.EEXIST,) if again else ()
        if is_directory:
            self._script.call("mkdirat", parent, self.text(name), 0o755, about=about, allow=allow)
        else:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            made = self._script.call("openat", parent, self.text(name), flags, 0o644, about=about, allow=allow)
            there = [self._script.take(made.error)] if again else []
            self._close(self._take(), about)
            self._script.put(*there)
        self._close(parent, about)

    def _make_devices(self, devices: Sequence[oci.Device]) -> None:
        script = self._script
        if not any(
            plan.destination == place.path == "/dev" and plan.type == "tmpfs" and not plan.bind
            for plan, place in zip(self._plans, self._places, strict=True)
        ):
            raise Obstacle("/dev is not a new file system")
        listed = {device.path for device in devices}
        wanted = [*(device for device in DEFAULT_DEVICES if device.path not in listed), *devices]
        if len({device.path for device in wanted}) != len(wanted):
            raise Obstacle("a device is listed twice")
        if any(not _fits(device) or (device.path == "/dev/null" and not _is_null(device)) for device in wanted):
            raise Obstacle("of the number of a device")
        umask = os.umask(0)
        os.umask(umask)
        made: set[str] = set()
        directory = self._inside("/dev", ("make device", "/dev"))
        script.call("umask", 0, about=None)
        for device in wanted:
            about = "make device", device.path
            above, name = os.path.split(device.path)
            if os.path.normpath(device.path) != device.path or not _is_below(device.path, "/dev"):
                raise Obstacle(f"{device.path} is not below /dev")
            if any(plan.destination == device.path or _is_below(device.path, plan.destination)
                   for plan in self._plans if plan.destination != "/dev"):  # fmt: skip
                raise Obstacle(f"{device.path} is below another mount")
            parent = directory
            if above != "/dev":
                if above not in made:
                    script.call("umask", umask, about=None)
                    for each in (*_parents(above, "/dev"), above):
                        self._make(each, about, again=True)
                    script.call("umask", 0, about=None)
                    made.add(above)
                parent = self._inside(above, about)
            mode = stat.S_IMODE(device.file_mode if device.file_mode is not None else 0o666)
            number = os.makedev(device.major, device.minor)
            script.call("mknodat", parent, self.text(name), DEVICE_TYPES[device.type] | mode, number, about=about)
            owner = device.uid or 0, device.gid or 0
            if owner != (0, 0):
                script.call("fchownat", parent, self.text(name), *owner, _AT_SYMLINK_NOFOLLOW, about=about)
            if parent != directory:
                self._close(parent, about)
        script.call("umask", umask, about=None)
        for name, target in LINKS:
            about = "link", f"/dev/{name}"
            script.call("symlinkat", self.text(target), directory, self.text(name), about=about, allow=(errno.EEXIST,))

    # -- the finished tree --------------------------------------------------------------------------------------------

    def make_directory(self, path: str) -> None:
        """Make the working directory if it is missing."""
        path = os.path.normpath("/" + path)
        path = "/" + path.lstrip("/")
        if any(path == plan.destination for plan in self._plans):
            return
        about = "make working directory", path
        above = [plan for plan in self._plans if _is_below(path, plan.destination)]
        if any(plan.bind for plan in above):  # there may be links that lead to what is missing
            raise Obstacle(f"the working directory {path} is in a volume")
        if above:
            script = self._script
            call = script.call("openat2", *self._at(path, sys.IN_ROOT), about=about, allow=(errno.ENOENT,))
            missing = script.take(call.error)
            self._close(self._take(), about)
            there = script.open_ways()
            script.put(missing)
            for each in (*_parents(path, "/"), path):
                self._make_following(each, about)
            script.put(*there)
            return
        try:
            made = self._tree.open_target(path, is_directory=True)
            place = _path_of(made)
            os.close(made)
        except OSError as error:
            raise Obstacle("of the working directory") from error
        # Where a mount point was missing, there is a directory now; the list expects none.
        if any(_is_below(place, other.path) or (place, 0) == (other.path, other.mode) for other in self._places):
            raise Obstacle("the working directory leads to a mount")

    def _make_following(self, path: str, about: About) -> None:
        above, name = os.path.split(path)
        parent = self._inside(above, about, sys.IN_ROOT)
        self._script.call("mkdirat", parent, self.text(name), 0o755, about=about, allow=(errno.EEXIST,))
        self._close(parent, about)

    def pivot(self) -> None:
        script, about = self._script, ("pivot into", "rootfs")
        here = self.text(".")
        script.call("fchdir", self._rootfs, about=about)
        script.call("pivot_root", here, here, about=about)
        script.call("umount2", here, sys.MNT_DETACH, about=about)
        script.call("chdir", self.text("/"), about=about)

    def restrict(self, linux: oci.Linux, *, readonly: bool) -> None:
        for mount, attributes, destination in self._late:
            self._set(mount, ("set attributes of the mount on", destination), attributes)
        for path in linux.readonly_paths:
            self._make_readonly(path, ("make read-only", path))
        if linux.masked_paths:
            null = self._null_device(linux.masked_paths[0])
            for path in linux.masked_paths:
                self._mask(path, null, ("mask", path))
        if linux.rootfs_propagation:
            bits, recursive = ROOTFS_PROPAGATION[linux.rootfs_propagation]
            self._set(self._rootfs, ("set propagation of", "rootfs"), propagation=bits, tree=recursive)
        if readonly:
            self._set(self._rootfs, ("make read-only", "rootfs"), sys.MOUNT_ATTR_RDONLY)

    def _existing(self, path: str, about: About) -> tuple[int, int]:
        call = self._script.call("openat2", *self._at(path, sys.IN_ROOT), about=about, allow=_ABSENT)
        return self._take(), self._script.take(call.error)

    def _make_readonly(self, path: str, about: About) -> None:
        target, missing = self._existing(path, about)
        flags = sys.AT_EMPTY_PATH | sys.OPEN_TREE_CLONE | sys.AT_RECURSIVE | sys.OPEN_TREE_CLOEXEC
        tree = self.opening("open_tree", target, self._empty, flags, about=about)
        self._set(tree, about, sys.MOUNT_ATTR_RDONLY)
        self._move(tree, target, about)
        self._close(tree, about)
        self._close(target, about)
        self._script.put(missing)

    def _mask(self, path: str, null: int, about: About) -> None:
        target, missing = self._existing(path, about)
        directory, other = self._is_directory(target, about)
        self._script.put(directory)
        cover = self._new(MountPlan(path, "tmpfs", "tmpfs"), about, attributes=sys.MOUNT_ATTR_RDONLY)
        self._move(cover, target, about)
        self._close(cover, about)
        self._close(cover - 1, about)  # its context
        covered = self._script.open_ways()
        self._script.put(other)
        flags = sys.AT_EMPTY_PATH | sys.OPEN_TREE_CLONE | sys.OPEN_TREE_CLOEXEC
        cover = self.opening("open_tree", null, self._empty, flags, about=about)
        self._move(cover, target, about)
        self._close(cover, about)
        self._script.put(*covered)
        self._close(target, about)
        self._script.put(missing)

    def _null_device(self, path: str) -> int:
        """Open the container's null device, which the image or a racing container may have replaced."""
        script = self._script
        null = self._inside("/dev/null", ("mask", path), sys.IN_ROOT)
        wrong = fixed("use", "/dev/null", errno.EINVAL)
        script.call("statx", null, self._empty, sys.AT_EMPTY_PATH, _STATX_BASIC, self._status, about=("mask", path))
        script.require(self._status + _MODE_AT, _FORMAT, _CHARACTER_DEVICE, about=wrong)
        number = os.major(_NULL) | os.minor(_NULL) << 32
        script.require(self._status + _RDEV_AT, _ALL, number, about=wrong)
        return null


def _has_mode(plan: MountPlan) -> bool:
    return any(key == "mode" for key, _value in plan.data)


def _fits(device: oci.Device) -> bool:
    """Whether mknod(2) can be given the number: it takes 32 bits."""
    return 0 <= device.major < 1 << 12 and 0 <= device.minor < 1 << 20


def _is_null(device: oci.Device) -> bool:
    return device.type in ("c", "u") and (device.major, device.minor) == (os.major(_NULL), os.minor(_NULL))


def _path_of(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


def _is_below(path: str, directory: str) -> bool:
    return path.startswith(directory.rstrip("/") + "/") and path != directory


def _parents(path: str, top: str) -> list[str]:
    """The directories between `top` and the path, from the top down."""
    found = []
    while _is_below(path := os.path.dirname(path), top):
        found.append(path)
    return found[::-1]


def _above(path: str, plans: Sequence[MountPlan]) -> list[str]:
    """The directories above a path that are to be made in the mount that it is in."""
    top = max((plan.destination for plan in plans if _is_below(path, plan.destination)), key=len)
    return _parents(path, top)
