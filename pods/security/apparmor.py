"""AppArmor profiles of containers (CRI `SecurityProfile`), and crisp's default profile (apparmor.d(5)).

The default profile is loaded into the kernel when the daemon starts. It stays loaded when crispd ends, because
containers still run under it.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from pathlib import Path
from typing import Final

from pods.errors import InvalidArgument
from pods.host import HostFacts
from pods.model import ContainerSecurity, ProfileType

DEFAULT_PROFILE: Final = "crisp-default"
_FIELD: Final = "config.linux.security_context.apparmor"
_PROFILES: Final = Path("/sys/kernel/security/apparmor/profiles")
_SECONDS: Final = 30.0
_PATH: Final = "/usr/sbin:/sbin:/usr/bin:/bin"

# A container may do anything with its own files. Denied are the kernel's controls that namespaces and read-only mounts
# leave within reach of root, and the processes of the host.
_TEXT: Final = f"""\
profile {DEFAULT_PROFILE} flags=(attach_disconnected, mediate_deleted) {{
  network,
  capability,
  file,
  umount,

  signal (send, receive) peer={DEFAULT_PROFILE},
  signal (receive) peer=unconfined,
  signal (receive) peer=/usr/bin/crun,
  signal (receive) peer=crun,
  signal (receive) peer=/usr/{{bin,sbin}}/runc,
  signal (receive) peer=runc,
  ptrace (trace, read, tracedby, readby) peer={DEFAULT_PROFILE},

  deny mount,

  deny /proc/{{kcore,kmem,mem,sysrq-trigger}} rwklx,
  deny /proc/{{acpi,bus,driver,fs,irq,scsi,tty}}/** wkl,
  deny /proc/sys/{{abi,debug,dev,fs,vm}}/** wkl,
  # Of a container's own are the message queues, semaphores and shared memory: msg*, sem and shm*.
  deny /proc/sys/kernel/{{[^ms]*,m[^s]*,s[^eh]*,se[^m]*,sh[^m]*}}{{,/**}} wkl,

  deny /sys/{{block,bus,class,dev,devices,hypervisor,module,power}}/** wkl,
  deny /sys/fs/{{[^c]*,c[^g]*}}{{,/**}} wkl,
  deny /sys/kernel/{{[^s]*,s[^e]*}}{{,/**}} wkl,
  deny /sys/kernel/security/** rwklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
}}
"""

_log = logging.getLogger("crisp.pods")


async def load_default_profile(host: HostFacts) -> None:
    """Load the default profile if AppArmor is on. A failure is logged; containers that request it are then refused.

    An already loaded one is replaced: an earlier version of crisp may have loaded it.
    """
    if not host.apparmor:
        return
    parser = shutil.which("apparmor_parser", path=_PATH)
    if parser is None:
        _log.warning("AppArmor is on, but there is no apparmor_parser: install it to load %s", DEFAULT_PROFILE)
        return
    process = await asyncio.create_subprocess_exec(
        parser, "--skip-cache", "--replace", "--quiet",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with asyncio.timeout(_SECONDS):
            _, errors = await process.communicate(_TEXT.encode())
    except TimeoutError:
        process.kill()
        await process.wait()
        errors = b"apparmor_parser did not end within 30 s"
    if process.returncode:
        output = errors.decode(errors="replace").strip()
        _log.error("could not load AppArmor profile", extra={"profile": DEFAULT_PROFILE, "error": output})


def apparmor_profile(security: ContainerSecurity, host: HostFacts, loaded: Path = _PROFILES) -> str:
    """Return the profile for the process, "" for none. Reads the kernel's list of loaded profiles.

    Without a request it is the default profile, if loaded. RuntimeDefault has no effect where AppArmor is off, and
    privileged containers are never confined. Raises InvalidArgument for a named profile if AppArmor is off, and for one
    that is not loaded.
    """
    wanted = security.apparmor
    if security.privileged or (wanted is not None and wanted.type is ProfileType.UNCONFINED):
        return ""
    if wanted is None:
        return DEFAULT_PROFILE if host.apparmor and DEFAULT_PROFILE in _names(loaded) else ""
    if wanted.type is ProfileType.RUNTIME_DEFAULT:
        return _loaded(DEFAULT_PROFILE, loaded) if host.apparmor else ""
    name = wanted.localhost_ref
    if not host.apparmor:
        raise InvalidArgument(f"{_FIELD}: profile {name!r} is requested, but AppArmor is not enabled on this node")
    return _loaded(name, loaded)


def _names(profiles: Path) -> set[str]:
    try:
        lines = profiles.read_text().splitlines()  # "name (enforce)"
    except FileNotFoundError:  # securityfs is not mounted
        return set()
    return {line.rpartition(" (")[0] for line in lines}


def _loaded(name: str, profiles: Path) -> str:
    if name not in _names(profiles):
        raise InvalidArgument(f"{_FIELD}: profile {name!r} is not loaded on this node: load it with apparmor_parser(8)")
    return name
