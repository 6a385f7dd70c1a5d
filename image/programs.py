"""Runs other programs and returns their output: credential helpers, gpgv."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path


async def ask(*command: str | Path, given: bytes = b"", seconds: float) -> tuple[int, bytes]:
    """Run a program with `given` as input. Returns its exit status and its output.

    It is killed after `seconds`, or if the caller is cancelled. Raises OSError if it cannot be run, and TimeoutError.
    """
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(seconds):
            said, _ = await process.communicate(given)
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    return process.returncode or 0, said
