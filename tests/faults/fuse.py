"""File systems that nobody serves, or whose one directory's listing is asked for and never given."""

from __future__ import annotations

import errno
import os
import select
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

# linux/fuse.h
_IN: Final = struct.Struct("IIQQIIIHH")  # len, opcode, unique, nodeid, uid, gid, pid, extension's length, padding
_OUT: Final = struct.Struct("IiQ")  # len, error, unique
_INIT_OUT: Final = struct.Struct("IIIIHHIIHHI28x")
_ATTR_OUT: Final = struct.Struct("QII6Q10I")
_GETATTR, _STATFS, _INIT, _OPENDIR, _FORGET, _INTERRUPT = 3, 17, 26, 27, 2, 36
_MINOR: Final = 31
_VALID: Final = 3600  # seconds that the kernel may keep what it was told
_BUFFER: Final = 1 << 17


@contextmanager
def dead_directory(place: Path) -> Iterator[None]:
    """Mount what nobody ever serves; at the end it is known to be dead, and who waits for it gets an error."""
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    subprocess.run(["mount", "-i", "-t", "fuse", "-o", options, "dead", place], check=True, pass_fds=[device])
    try:
        yield
    finally:
        os.close(device)
        subprocess.run(["umount", "-l", place], check=True)


@contextmanager
def silent_directory(place: Path) -> Iterator[threading.Event]:
    """Mount a directory whose listing is never given: no signal ends who waits for it, who gets an error at the end.

    Yields what is set once somebody waits.
    """
    device = os.open("/dev/fuse", os.O_RDWR | os.O_NONBLOCK)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other"
    with ExitStack() as undo:
        undo.callback(os.close, device)
        subprocess.run(["mount", "-i", "-t", "fuse", "-o", options, "silent", place], check=True, pass_fds=[device])
        undo.callback(subprocess.run, ["umount", "-l", place], check=True)
        ours, theirs = os.pipe()
        undo.callback(os.close, ours)
        serving = threading.Thread(target=_serve, args=(device, ours, asked := threading.Event()))
        serving.start()
        undo.callback(serving.join)
        undo.callback(os.close, theirs)
        yield asked


def _serve(device: int, end: int, asked: threading.Event) -> None:
    poll = select.poll()
    poll.register(device, select.POLLIN)
    poll.register(end, select.POLLIN)
    while True:
        ready = dict(poll.poll())
        if end in ready or ready.get(device, 0) & select.POLLERR:
            return
        try:
            request = os.read(device, _BUFFER)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EINTR, errno.ENOENT):  # ENOENT: it was interrupted
                continue
            return
        _length, opcode, unique, *_ = _IN.unpack_from(request)
        if opcode == _OPENDIR:
            asked.set()
        if opcode in (_OPENDIR, _FORGET, _INTERRUPT):
            continue
        answer = _answer(opcode)
        code = 0 if answer is not None else -errno.ENOSYS
        os.write(device, _OUT.pack(_OUT.size + len(answer or b""), code, unique) + (answer or b""))


def _answer(opcode: int) -> bytes | None:
    if opcode == _INIT:
        return _INIT_OUT.pack(7, _MINOR, 0, 0, 0, 0, 4096, 1, 0, 0, 0)
    if opcode == _GETATTR:
        return _ATTR_OUT.pack(_VALID, 0, 0, *(1, 0, 0, 0, 0, 0), *(0, 0, 0), 0o040755, 2, *(0, 0, 0), 4096, 0)
    if opcode == _STATFS:
        return bytes(80)
    return None
