"""Fast stand-ins for parts of the standard library: crisp-oci's start-up time is mostly imports.

`dataclasses` imports inspect, ast and dis, and compiles code for each class; `json` imports `re`; `signal` and
`socket` import `enum`; `contextlib` imports `functools` and `collections`. Type checkers see the standard library's
modules. `runtime/` imports `typing` and `collections.abc` for type checkers only. A test lists the modules that a
start may not import.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import contextlib as contextlib
    import json as json
    import signal as signal
    import socket as socket
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
    from dataclasses import replace as replace
else:
    import _signal as signal

    from runtime.light import contexts as contextlib
    from runtime.light import jsons as json
    from runtime.light import sockets as socket
    from runtime.light.classes import dataclass, field, replace

__all__ = ["contextlib", "dataclass", "field", "json", "replace", "signal", "socket"]
