"""Validates a well-formed configuration before anything is changed.

`spec.parse` checks types and single values. Here members are checked together and against the machine. Every error is
a `SpecError` that names the member by its JSON path.
"""

from __future__ import annotations

import fcntl
import os
import stat

from linux import lsm
from linux.sysctls import namespace_of, path_of
from linux.tables import NAMESPACE_FLAGS
from runtime.errors import SpecError
from runtime.namespaces import user as userns
from runtime.process import scheduling
from runtime.spec.values import Linux, Process, Spec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Final

_NS_GET_NSTYPE: Final = 0xB703
_KINDS: Final = {flag: kind for kind, flag in NAMESPACE_FLAGS.items()}
_LONGEST_INTERFACE_NAME: Final = 15  # IFNAMSIZ without the NUL


def check(spec: Spec) -> None:
    """Refuse what cannot work on any machine. Pure. Raises SpecError."""
    linux = spec.linux
    for index, namespace in enumerate(linux.namespaces):
        if namespace.type == "mount" and namespace.path:
            raise SpecError(f"linux.namespaces[{index}].path", "a mount namespace cannot be joined; remove the path")
    if linux.namespace("uts") is None:
        for name, value in (("hostname", spec.hostname), ("domainname", spec.domainname)):
            if value:
                raise SpecError(name, f"{value!r} would change the host: add a uts namespace to linux.namespaces")
    if spec.process is not None:
        _check_process(spec.process)
    if linux.intel_rdt is not None:
        raise SpecError("linux.intelRdt", "is not supported: crisp does not use resctrl")
    if linux.personality is not None and linux.personality.flags:
        raise SpecError("linux.personality.flags", f"expected none, got {list(linux.personality.flags)}")
    if linux.memory_policy is not None:
        scheduling.check_memory_policy(linux.memory_policy)
    _check_clocks(linux)
    _check_net_devices(linux)
    for name in linux.sysctl:
        _check_sysctl(name, linux)
    _check_absolute(linux.masked_paths, "linux.maskedPaths")
    _check_absolute(linux.readonly_paths, "linux.readonlyPaths")
    for index, device in enumerate(linux.devices):
        if not device.path.startswith("/"):
            raise SpecError(f"linux.devices[{index}].path", f"expected an absolute path, got {device.path!r}")


def check_host(spec: Spec) -> None:
    """Refuse what this machine does not have. Changes nothing. Raises SpecError."""
    check_namespaces(spec)
    network = spec.linux.namespace("network")
    if network is not None and network.path and spec.linux.sysctl:
        _refuse_the_hosts_network(network.path, spec.linux.sysctl)
    if spec.process is not None:
        check_labels(spec.process)
        mappings = userns.mappings_of(spec)
        if mappings is not None:
            _check_mapped(spec.process, mappings)
    if spec.linux.mount_label and not lsm.selinux_is_on():
        raise SpecError("linux.mountLabel", f"{spec.linux.mount_label!r} cannot be applied: SELinux is not enabled")
    _check_listener(spec.linux)


def check_namespaces(spec: Spec) -> None:
    """Refuse paths that are not namespaces of the stated type. Raises SpecError."""
    for index, namespace in enumerate(spec.linux.namespaces):
        if namespace.path:
            _check_namespace(namespace.type, namespace.path, f"linux.namespaces[{index}].path")


def check_process(process: Process) -> None:
    """Check the process of an exec, on its own and against the machine. Raises SpecError."""
    _check_process(process)
    check_labels(process)


def check_labels(process: Process) -> None:
    """Refuse labels of security modules that are not enabled. Raises SpecError."""
    if process.apparmor_profile and not lsm.apparmor_is_on():
        reason = f"{process.apparmor_profile!r} cannot be applied: AppArmor is not enabled"
        raise SpecError("process.apparmorProfile", reason)
    if process.selinux_label and not lsm.selinux_is_on():
        raise SpecError("process.selinuxLabel", f"{process.selinux_label!r} cannot be applied: SELinux is not enabled")


def _check_process(process: Process) -> None:
    for index, entry in enumerate(process.env):
        if entry.find("=") < 1:
            raise SpecError(f"process.env[{index}]", "expected NAME=VALUE")  # never show the entry: it may be a Secret
    if not process.args[0]:
        raise SpecError("process.args[0]", "expected the name of a program, got ''")
    scheduling.check(process)


def _check_clocks(linux: Linux) -> None:
    namespace = linux.namespace("time")
    if linux.time_offsets and (namespace is None or namespace.path):
        raise SpecError("linux.timeOffsets", "needs a new time namespace in linux.namespaces")


def _check_net_devices(linux: Linux) -> None:
    if not linux.net_devices:
        return
    if linux.namespace("network") is None:
        raise SpecError("linux.netDevices", "needs a network namespace in linux.namespaces")
    taken: set[str] = set()
    for name, device in linux.net_devices.items():
        path = f"linux.netDevices.{name}"
        if not _is_interface_name(name):
            raise SpecError(path, "expected the name of an interface")
        if device.name and not _is_interface_name(device.name):
            raise SpecError(f"{path}.name", f"expected the name of an interface, got {device.name!r}")
        if (device.name or name) in taken:
            raise SpecError(f"{path}.name", f"{device.name or name} is used for another interface too")
        taken.add(device.name or name)


def _is_interface_name(name: str) -> bool:
    if name in ("", ".", "..") or len(os.fsencode(name)) > _LONGEST_INTERFACE_NAME:
        return False
    return not any(letter in "/:%\0" or letter.isspace() for letter in name)


def _check_sysctl(name: str, linux: Linux) -> None:
    where = f"linux.sysctl.{name}"
    path = path_of(name)
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise SpecError(where, "expected the name of a sysctl")
    kind = namespace_of(path)
    if not kind:
        raise SpecError(where, "would change the host: it is not namespaced")
    if linux.namespace(kind) is None:
        raise SpecError(where, f"would change the host: add a {kind} namespace to linux.namespaces")


def _check_absolute(paths: Iterable[str], where: str) -> None:
    for index, path in enumerate(paths):
        if not path.startswith("/"):
            raise SpecError(f"{where}[{index}]", f"expected an absolute path, got {path!r}")


def _check_namespace(kind: str, path: str, where: str) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise SpecError(where, f"{path}: {os.strerror(error.errno or 0)}") from None
    try:
        found = _KINDS.get(fcntl.ioctl(fd, _NS_GET_NSTYPE))
    except OSError:
        found = None
    finally:
        os.close(fd)
    if found != kind:
        raise SpecError(where, f"expected a {kind} namespace, {path} is {f'a {found} one' if found else 'none'}")


def _refuse_the_hosts_network(path: str, sysctls: Iterable[str]) -> None:
    if os.path.samefile(path, "/proc/self/ns/net"):
        for name in sysctls:
            if path_of(name).startswith("net/"):
                raise SpecError(f"linux.sysctl.{name}", f"would change the host: {path} is its network")


def _check_mapped(process: Process, mappings: userns.IDMappings) -> None:
    for member, of, number in (("uid", mappings.uid, process.user.uid), ("gid", mappings.gid, process.user.gid)):
        try:
            of(number)
        except SpecError:
            reason = f"{number} is not mapped in the user namespace"
            raise SpecError(f"process.user.{member}", reason) from None


def _check_listener(linux: Linux) -> None:
    path = linux.seccomp.listener_path if linux.seccomp else ""
    if not path:
        return
    try:
        is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError as error:
        raise SpecError("linux.seccomp.listenerPath", f"{path}: {os.strerror(error.errno or 0)}") from None
    if not is_socket:
        raise SpecError("linux.seccomp.listenerPath", f"{path} is not a socket")
