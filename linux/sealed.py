"""No import any more: what a process has not loaded before it goes among a container's files, it never loads.

A module that is looked up by then would be found where the container says (as libraries were in CVE-2019-14271). And a
shim that lives on after an upgrade would load another version's.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


class _Refusal:
    @staticmethod
    def find_spec(name: str, _path: object = None, _target: object = None) -> NoReturn:
        raise ImportError(f"import {name}: it was to be loaded before this process was made", name=name)


def seal() -> None:
    """From now on an import of what is not loaded yet raises ImportError, in the caller and in all that it forks."""
    sys.path[:] = []
    sys.path_hooks[:] = []
    sys.path_importer_cache.clear()
    sys.meta_path[:] = [_Refusal]
