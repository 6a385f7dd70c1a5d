"""Formats crispd's log: one line per event with `key=value` fields, on standard error.

The fields are those of the record's `extra`. Under systemd the journal adds the time, and takes the level from a `<N>`
at the start of the line (sd-daemon(3)).
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Mapping

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_PLAIN = re.compile(r"[^\s\"=\\]+")
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LogfmtFormatter(logging.Formatter):
    """Formats records as logfmt. With `journal` it leaves the time out and marks the level for the journal."""

    def __init__(self, *, journal: bool = False) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """Format a record as one line. A traceback becomes a field, with its line breaks escaped."""
        parts = [f"<{_priority(record.levelno)}>" if self._journal else f"time={_time(record.created)} "]
        parts += [f"level={record.levelname.lower()} logger={record.name} msg={_value(record.getMessage())}"]
        parts += [f" {key}={_value(value)}" for key, value in vars(record).items() if key not in _OWN]
        if record.exc_info:
            parts += [f" traceback={_value(self.formatException(record.exc_info))}"]
        return "".join(parts)


def start(level: int, environment: Mapping[str, str] = os.environ) -> None:
    """Send the program's log to standard error, from `level` on."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogfmtFormatter(journal=_is_journal(2, environment.get("JOURNAL_STREAM", ""))))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # What no line shows is not looked up (logging HOWTO, "Optimization"): the caller alone is a third of a record.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    set_level(level)


def set_level(level: int) -> None:
    """Log from `level` on."""
    root = logging.getLogger()
    root.handlers[0].setLevel(level)
    root.setLevel(min(level, logging.WARNING))  # the pods' recorder gets warnings as well
    # At debug level the event loop and libraries log every poll.
    for name in ("asyncio", "grpc", "aiohttp"):
        logging.getLogger(name).setLevel(max(level, logging.INFO))


def _is_journal(descriptor: int, stream: str) -> bool:
    status = os.fstat(descriptor)
    return stream == f"{status.st_dev}:{status.st_ino}"


def _priority(level: int) -> int:
    """Return the level as syslog(3)'s number."""
    if level >= logging.ERROR:
        return 3
    if level >= logging.WARNING:
        return 4
    return 6 if level >= logging.INFO else 7


def _time(seconds: float) -> str:
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1e6):06d}Z"


def _value(value: object) -> str:
    shown = str(value)
    return shown if _PLAIN.fullmatch(shown) else json.dumps(shown, ensure_ascii=False)
