"""Fast stand-ins for dataclasses, json, signal and socket: the start-up time of crisp-oci is mostly imports.

`crisp-oci` is a fresh interpreter each time, and most of what it costs is importing: `dataclasses` (by way of inspect,
ast, dis) and the code it compiles for each class, `re` below `json`, `enum` below `signal` and `socket`. To a type
checker these are the standard library's own; `runtime/` imports `typing` for type checkers only. A test holds the
modules of a start to it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import json as json
    import signal as signal
    import socket as socket
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
    from dataclasses import replace as replace
else:
    import _signal as signal

    from runtime.light import jsons as json
    from runtime.light import sockets as socket
    from runtime.light.classes import dataclass, field, replace

__all__ = ["dataclass", "field", "json", "replace", "signal", "socket"]
