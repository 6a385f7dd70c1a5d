"""Exit statuses of commands whose status is otherwise that of a process in a container: docker's, podman's, shells'."""

from __future__ import annotations

import re
from typing import Final

from cri.client.errors import ClientError

OWN_FAILURE: Final = 125
_NOT_EXECUTABLE: Final = 126
_NOT_FOUND: Final = 127
# In the words of crisp and runc, of crun, and of a program without a name.
_EXECUTION = re.compile(r'exec: ".*": (?P<why>.+)|executable file .* not found|expected the name of a program', re.S)
_MISSING = ("not found", "no such file or directory")


def exit_status(error: ClientError) -> int:
    """127 for a program that is not there, 126 for one that cannot be executed, 125 for any other failure."""
    if (failure := _EXECUTION.search(str(error))) is None:
        return OWN_FAILURE
    why = (failure["why"] or "not found").lower()
    return _NOT_FOUND if any(words in why for words in _MISSING) else _NOT_EXECUTABLE
