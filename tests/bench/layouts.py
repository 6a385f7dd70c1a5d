"""The images of a benchmark, as tars of OCI layouts: busybox, and the pause program that other runtimes need."""

from __future__ import annotations

import platform
import struct
import subprocess
import sys
from pathlib import Path

from tests.images import build_image, entry, layer, tar_of, write_layout

BUSYBOX = "localhost/busybox:bench"
PAUSE = "localhost/pause:bench"
_MAKER = Path(__file__).parents[2] / "deploy" / "busybox-image.py"

# pause(2) for ever, which is what a pause image comes to: `mov eax, 34; syscall; jmp` back.
_CODE = bytes.fromhex("b822000000 0f05 ebf7")
_BASE = 0x400000


def busybox_tar(directory: Path) -> Path:
    """The image that deploy/ makes of the host's busybox. Takes busybox-static."""
    layout = directory / "busybox"
    subprocess.run([sys.executable, _MAKER, layout, BUSYBOX], check=True)
    return tar_of(layout, layout.with_suffix(".tar"))


def pause_tar(directory: Path) -> Path:
    """An image whose only file is a program that sleeps until it is killed. x86-64 only."""
    if platform.machine() != "x86_64":
        raise SystemExit("make the pause image: only x86-64 is known here")
    program = layer(entry("pause", _program(), mode=0o755))
    layout = write_layout(directory / "pause", {PAUSE: build_image([program], {"Entrypoint": ["/pause"]})})
    return tar_of(layout, layout.with_suffix(".tar"))


def _program() -> bytes:
    """A static ELF executable of `_CODE` (elf(5)): header, one program header, the code."""
    start, size = _BASE + 64 + 56, 64 + 56 + len(_CODE)
    identity = b"\x7fELF\x02\x01\x01"
    header = struct.pack("<16sHHIQQQIHHHHHH", identity, 2, 62, 1, start, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000)
    return header + segment + _CODE
