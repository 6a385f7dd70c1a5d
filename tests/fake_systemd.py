"""A systemd that does no more than its cgroups: a message bus with one peer, which answers org.freedesktop.systemd1.

It makes units' directories in every hierarchy and moves their processes there; units whose processes have gone go away.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from jeepney import DBusAddress, Message, MessageType, Parser, new_error, new_method_return, new_signal
from jeepney.low_level import HeaderFields

from runtime.cgroups import Cgroup, Hierarchies
from runtime.cgroups.systemd import slice_path
from runtime.cgroups.systemd_bus import SYSTEMD
from runtime.spec.values import Resources

SWEEP_SECONDS = 0.02
BUS = DBusAddress(SYSTEMD.object_path, interface=SYSTEMD.interface)


@dataclass
class Call:
    """A call to the manager; properties are without their signatures."""

    member: str
    unit: str
    properties: dict[str, Any] = field(default_factory=dict)


class FakeSystemd:
    """Serves on `path` as long as the context lasts. `refusal`, if set, is the error of the next units to start.

    `root` is the cgroup that it is in itself, as a user's systemd is in one. Without `bus` it is systemd's own socket,
    which knows no calls of a bus.
    """

    def __init__(self, path: Path, root: str = "", *, bus: bool = True) -> None:
        self.root = root
        self._bus = bus
        self.address = f"unix:path={path}"
        self.calls: list[Call] = []
        self.refusal = ""
        self.units: dict[str, str] = {}  # by name: cgroup path
        self._hierarchies = Hierarchies.detect()
        self._serials = itertools.count(1)
        self._jobs = itertools.count(1)
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._accept, self._sweep)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()
        self._remove_empty()

    def called(self, member: str, end: str) -> list[Call]:
        """The calls of that member for units whose names end so."""
        return [call for call in self.calls if call.member == member and call.unit.endswith(end)]

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with peer, peer.makefile("rb", buffering=0) as lines:
            lines.read(1)  # a NUL, for credentials
            while (line := lines.readline().strip()) != b"BEGIN":
                if not line:
                    return
                peer.sendall(b"OK 0123456789abcdef0123456789abcdef\r\n" if line.startswith(b"AUTH") else b"ERROR\r\n")
            parser = Parser()
            while data := peer.recv(4096):
                parser.add_data(data)
                while (message := parser.get_next_message()) is not None:
                    if message.header.message_type is MessageType.method_call:
                        for answer in self._answers(message):
                            peer.sendall(answer.serialise(next(self._serials)))

    def _answers(self, message: Message) -> list[Message]:
        member = message.header.fields[HeaderFields.member]
        if not self._bus and member in ("Hello", "AddMatch"):
            return [new_error(message, "org.freedesktop.DBus.Error.UnknownObject", "s", ("Unknown object.",))]
        if member == "Hello":
            return [new_method_return(message, "s", (":1.1",))]
        if member == "AddMatch":
            return [new_method_return(message)]
        if member == "Get":
            return [new_method_return(message, "v", (("s", self.root or "/"),))]
        lists = [part for part in message.body[1:] if isinstance(part, list)]
        properties = {name: value for name, (_, value) in lists[0]} if lists else {}
        unit = message.body[0]
        self.calls.append(Call(member, unit, properties))
        if member == "SetUnitProperties":
            return [new_method_return(message)]
        if member == "StartTransientUnit":
            if self.refusal:
                return [new_error(message, "org.freedesktop.DBus.Error.InvalidArgs", "s", (self.refusal,))]
            self._start(unit, properties)
        elif unit not in self.units:
            return [new_error(message, "org.freedesktop.systemd1.NoSuchUnit", "s", (f"Unit {unit} not loaded.",))]
        number = next(self._jobs)
        job = f"/org/freedesktop/systemd1/job/{number}"
        end = new_signal(BUS, "JobRemoved", "uoss", (number, job, unit, "done"))
        return [new_method_return(message, "o", (job,)), end]

    def _start(self, unit: str, properties: dict[str, Any]) -> None:
        path = f"{self.root}{slice_path(properties['Slice'])}/{unit}"
        parts = path[1:].split("/")
        with self._lock:
            for depth in range(1, len(parts) + 1):
                self.units[parts[depth - 1]] = below = "/" + "/".join(parts[:depth])
                Cgroup.at(self._hierarchies, below).create(Resources())  # one by one: none has crisp's mark of a parent
            for mountpoint in self._hierarchies.mountpoints():
                for pid in properties["PIDs"]:
                    Path(mountpoint + path, "cgroup.procs").write_text(str(pid))

    def _sweep(self) -> None:
        while not self._ended.wait(SWEEP_SECONDS):
            self._remove_empty()

    def _remove_empty(self) -> None:
        with self._lock:
            for unit, path in sorted(self.units.items(), key=lambda item: -item[1].count("/")):
                for mountpoint in self._hierarchies.mountpoints():
                    with contextlib.suppress(OSError):
                        os.rmdir(mountpoint + path)
                if not any(os.path.isdir(mountpoint + path) for mountpoint in self._hierarchies.mountpoints()):
                    del self.units[unit]
