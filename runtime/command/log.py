"""Writes the log in which callers read failures: `--log FILE --log-format json` of podman and containerd.

A line is {"level", "msg", "time"} in JSON, or the same as key=value in text. Without a file, messages go to standard
error.
"""

from __future__ import annotations

import os
import sys
import time


class Log:
    """A log file, or standard error. Raises OSError if the file cannot be opened."""

    def __init__(self, path: str, format: str, *, debug: bool) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644) if path else -1
        self._json = format == "json"
        self._debug = debug

    def debug(self, message: str) -> None:
        if self._debug:
            self._write("debug", message)

    def warning(self, message: str) -> None:
        self._write("warning", message)

    def error(self, message: str) -> None:
        """Log a command's failure to the file, and always to standard error."""
        self._write("error", message)
        if self._fd >= 0:
            _say(message)

    def _write(self, level: str, message: str) -> None:
        if self._fd < 0:
            _say(message if level == "error" else f"{level}: {message}")
            return
        import json

        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self._json:
            line = json.dumps({"level": level, "msg": message, "time": stamp}, separators=(",", ":"))
        else:
            line = f'time="{stamp}" level={level} msg={json.dumps(message, ensure_ascii=False)}'
        os.write(self._fd, f"{line}\n".encode())


def _say(message: str) -> None:
    try:
        print(f"crisp-oci: {message}", file=sys.stderr, flush=True)
    except OSError:
        return  # standard error is closed
