"""Builds tiny static programs from machine code and keeps them in memory: no file on disk that could be changed."""

from __future__ import annotations

import fcntl
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

MACHINES: Final = {"x86_64": 62, "aarch64": 183}  # e_machine
_LOAD_ADDRESS: Final = 0x400000
_HEADERS: Final = 64 + 56
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_F_SEAL_EXEC: Final = 0x20  # Linux 6.3: nobody changes who may execute it
_MFD_EXEC: Final = 0x10  # Linux 6.3: makes an executable memfd under vm.memfd_noexec=1


def executable(code: bytes, machine: str) -> bytes:
    """Return a static ELF file (elf(5)) that is loaded read-only and starts at the first byte of `code`."""
    size = _HEADERS + len(code)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header = struct.pack(
        "<HHIQQQIHHHHHH", 2, MACHINES[machine], 1, _LOAD_ADDRESS + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0
    )
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _LOAD_ADDRESS, _LOAD_ADDRESS, size, size, 0x1000)
    return ident + header + segment + code


def in_memory(name: str, program: bytes, mode: int) -> int:
    """Put the program into a sealed memfd with that mode and return a read-only descriptor. Raises OSError."""
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        writable = os.memfd_create(name, flags | _MFD_EXEC)
    except OSError:
        writable = os.memfd_create(name, flags)
    try:
        os.write(writable, program)
        # execve refuses a file that is open for writing anywhere (ETXTBSY): reopen it read-only.
        readonly = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
        os.fchmod(readonly, mode)
        # Without seals a container's root could reopen its program for writing (CVE-2019-5736), and others run it too.
        try:
            fcntl.fcntl(writable, fcntl.F_ADD_SEALS, _SEALS | _F_SEAL_EXEC)
        except OSError:
            fcntl.fcntl(writable, fcntl.F_ADD_SEALS, _SEALS)
        return readonly
    finally:
        os.close(writable)
