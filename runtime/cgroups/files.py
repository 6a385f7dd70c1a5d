"""Reads and writes the kernel's cgroup files. Errors name the file and the value."""

from __future__ import annotations

import os

from runtime.errors import OperationFailed

_PAGE = 4096


def read(path: str) -> str:
    """Return the file's text without surrounding white space. Raises `OperationFailed`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # One read(2) returns at most a page, whatever the buffer's size: a long list takes several.
            text = b""
            while chunk := os.read(fd, _PAGE):
                text += chunk
        finally:
            os.close(fd)
    except OSError as error:
        raise OperationFailed.of("read", path, error) from error
    return text.decode().strip()


def write(path: str, value: str) -> None:
    """Write the value with a single write(2), as the kernel's parsers need it. Raises `OperationFailed`."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, value.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise OperationFailed.of("write", f"`{value}` to `{path}`", error) from error


def counter(path: str, name: str) -> int:
    """Return the number after `name` in a flat-keyed file such as memory.events; 0 if the file or key is missing."""
    try:
        text = read(path)
    except OperationFailed:
        return 0
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value)
    return 0
