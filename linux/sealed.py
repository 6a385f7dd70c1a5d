"""Forbids imports: a process that enters a container's files must have loaded all its modules before.

A later import would search the container's file system (as libraries were loaded in CVE-2019-14271). A shim that lives
on after an upgrade would load another version's module.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


class _Refusal:
    @staticmethod
    def find_spec(name: str, _path: object = None, _target: object = None) -> NoReturn:
        raise ImportError(f"import {name}: it must be loaded before this process is forked", name=name)


def seal() -> None:
    """Make every later import raise ImportError, in the caller and in all processes that it forks."""
    sys.path[:] = []
    sys.path_hooks[:] = []
    sys.path_importer_cache.clear()
    sys.meta_path[:] = [_Refusal]
