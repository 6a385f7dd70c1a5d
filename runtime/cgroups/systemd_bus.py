"""Builds systemd's D-Bus calls as messages, without I/O (org.freedesktop.systemd1(5)). Needs jeepney.

Only the daemon and `crisp-oci --systemd-cgroup` use it; the zygote does not preload it.
"""

from __future__ import annotations

import os
from typing import Final

from jeepney import DBusAddress, DBusErrorResponse, MatchRule, Message, Properties, new_method_call
from jeepney.auth import AuthenticationError
from jeepney.bus import get_bus

from runtime.cgroups.systemd import Property
from runtime.light import contextlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

SYSTEMD: Final = DBusAddress(
    "/org/freedesktop/systemd1", bus_name="org.freedesktop.systemd1", interface="org.freedesktop.systemd1.Manager"
)
SECONDS: Final = 30.0  # these calls take well under a second
_NO_SUCH_UNIT: Final = "org.freedesktop.systemd1.NoSuchUnit"
_OWN: Final = "/systemd/private"  # systemd's own socket, for root (or its user) alone


def system_socket(exists: Callable[[str], bool] = os.path.exists) -> str:
    """Return the path of the system's message bus; of systemd's own socket if there is no bus, as in many containers.

    DBUS_SYSTEM_BUS_ADDRESS may name either.
    """
    bus: str = get_bus("SYSTEM")
    own = f"/run{_OWN}"
    return own if not os.environ.get("DBUS_SYSTEM_BUS_ADDRESS") and not exists(bus) and exists(own) else bus


def is_bus(path: str) -> bool:
    """Is a message bus behind this socket? systemd itself expects no Hello, and sends all signals to all clients."""
    return not path.endswith(_OWN)


def start_transient_unit(name: str, properties: Sequence[Property]) -> Message:
    """Create and start a unit. The answer is the path of a job; its end is signalled (`job_removed`)."""
    return new_method_call(
        SYSTEMD, "StartTransientUnit", "ssa(sv)a(sa(sv))", (name, "replace", _variants(properties), [])
    )


def set_unit_properties(name: str, properties: Sequence[Property]) -> Message:
    """Change a unit until it ends. The change is complete when the answer comes."""
    return new_method_call(SYSTEMD, "SetUnitProperties", "sba(sv)", (name, True, _variants(properties)))


def stop_unit(name: str) -> Message:
    """Stop a unit. The answer is the path of a job."""
    return new_method_call(SYSTEMD, "StopUnit", "ss", (name, "replace"))


def get_control_group() -> Message:
    """Ask for the manager's own cgroup, a variant of a string. The default slice of its units is below it."""
    return Properties(SYSTEMD).get("ControlGroup")


def job_removed() -> MatchRule:
    """Match the signal for the end of a job. Its body: a number, the job's path, the unit, and "done" or a failure.

    A bus sends it only to clients that subscribed with AddMatch.
    """
    return MatchRule(type="signal", interface=SYSTEMD.interface, member="JobRemoved", path=SYSTEMD.object_path)


@contextlib.contextmanager
def failing_as(failure: Callable[[str], Exception], what: str) -> Iterator[None]:
    """Raise `failure("what: why")` if a call fails in any way. A missing unit is no failure."""
    try:
        yield
    except DBusErrorResponse as error:
        if error.name != _NO_SUCH_UNIT:
            raise failure(f"{what}: {_refusal(error)}") from error
    except AuthenticationError as error:
        raise failure(f"{what}: {error}") from error
    except TimeoutError as error:
        raise failure(f"{what}: no answer in {SECONDS:.0f} s") from error
    except EOFError as error:
        raise failure(f"{what}: the message bus hung up") from error
    except OSError as error:
        raise failure(f"{what}: {error.strerror or error}") from error


def _refusal(error: DBusErrorResponse) -> str:
    return error.data[0] if error.data and isinstance(error.data[0], str) else str(error.name)


def _variants(properties: Sequence[Property]) -> list[tuple[str, tuple[str, object]]]:
    return [(name, (signature, value)) for name, signature, value in properties]
