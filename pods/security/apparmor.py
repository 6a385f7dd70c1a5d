"""The AppArmor profile of containers that name none, made known to the kernel at the daemon's start (apparmor.d(5)).

A profile stays in the kernel when crispd ends: what runs under it does so still.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from typing import Final

from pods.host import HostFacts

DEFAULT_PROFILE: Final = "crisp-default"
_SECONDS: Final = 30.0
_PATH: Final = "/usr/sbin:/sbin:/usr/bin:/bin"

# A container may do with its own files what it likes; what is kept from it are the kernel's controls that namespaces
# and read-only mounts leave within the reach of root, and the processes of the host.
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
    """Load the profile where AppArmor is on. A failure is logged: containers that ask for it by name are refused then.

    It is loaded anew although there is one, which an earlier version of crisp may have left.
    """
    if not host.apparmor:
        return
    parser = shutil.which("apparmor_parser", path=_PATH)
    if parser is None:
        _log.warning("AppArmor is on, and there is no apparmor_parser to load %s: is it installed?", DEFAULT_PROFILE)
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
        errors = b"it did not end"
    if process.returncode:
        told = errors.decode(errors="replace").strip()
        _log.error("AppArmor profile not loaded", extra={"profile": DEFAULT_PROFILE, "error": told})
