"""The network room against Debian's plugins, real namespaces, and iptables. Needs root."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from network.errors import NetworkError, NetworkNotReady, PluginFailed, PluginNotFound
from network.model import Attachment, PortMapping
from network.network import Network
from tests.waiting import SECONDS

PLUGINS = Path("/usr/lib/cni")

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(not (PLUGINS / "bridge").exists(), reason="needs containernetworking-plugins"),
]


def run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@dataclass
class Place:
    """A configuration, plugins, a bridge and a namespace of the test's own."""

    root: Path
    bridge: str
    netns: str
    subnet: str
    sandbox_id: str

    @property
    def conf_dir(self) -> Path:
        return self.root / "net.d"

    def network(self, seconds: float = 20.0) -> Network:
        return Network(self.conf_dir, [self.root / "bin", PLUGINS], self.root / "cache", plugin_seconds=seconds)

    def attachment(self, **fields: object) -> Attachment:
        named = {"sandbox_id": self.sandbox_id, "netns": self.netns, "pod_name": "web", "pod_namespace": "default"}
        return Attachment(**{**named, "pod_uid": "uid-1", **fields})  # type: ignore[arg-type]

    def configure(self, *further: dict[str, object], masquerade: bool = True) -> None:
        ipam = {"type": "host-local", "ranges": [[{"subnet": self.subnet}]], "dataDir": str(self.root / "leases")}
        bridge = {"type": "bridge", "bridge": self.bridge, "isGateway": True, "ipMasq": masquerade, "ipam": ipam}
        conflist = {"cniVersion": "1.0.0", "name": self.bridge, "plugins": [bridge, *further]}
        self.conf_dir.mkdir(exist_ok=True)
        (self.conf_dir / "10-test.conflist").write_text(json.dumps(conflist))

    def script(self, name: str, text: str) -> None:
        (self.root / "bin").mkdir(exist_ok=True)
        path = self.root / "bin" / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def leases(self) -> list[str]:
        return [path.name for path in (self.root / "leases").glob("*/10.*")]

    def ports(self) -> list[str]:
        return [link["ifname"] for link in json.loads(run("ip", "-j", "link", "show", "master", self.bridge) or "[]")]

    def rules(self) -> list[str]:
        prefix = self.subnet.rpartition(".")[0] + "."
        saved = run("iptables-save").splitlines()
        return [line for line in saved if self.sandbox_id in line or prefix in line]

    def drop_rules(self) -> None:
        rules = [shlex.split(line) for line in self.rules() if line.startswith("-A POSTROUTING")]
        for rule in rules:
            run("iptables", "-t", "nat", "-D", *rule[1:])
            run("iptables", "-t", "nat", "-F", rule[-1])
            run("iptables", "-t", "nat", "-X", rule[-1])

    def assert_nothing_left(self) -> None:
        assert self.leases() == []
        assert self.ports() == []
        assert self.rules() == []
        assert [path.name for path in (self.root / "cache").iterdir()] == []


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    unique = secrets.token_hex(3)
    bridge, namespace = f"crt{unique}", f"crtest-{unique}"
    subnet = f"10.213.{secrets.randbelow(256)}.0/24"
    run("ip", "netns", "add", namespace)
    descriptors = set(os.listdir("/proc/self/fd"))
    place = Place(tmp_path, bridge, f"/run/netns/{namespace}", subnet, f"crtest{unique}")
    try:
        yield place
        assert set(os.listdir("/proc/self/fd")) <= descriptors
    finally:
        with contextlib.suppress(subprocess.CalledProcessError):
            run("ip", "netns", "delete", namespace)
        subprocess.run(["ip", "link", "delete", bridge], check=False, capture_output=True)
        place.drop_rules()


@contextlib.asynccontextmanager
async def opened(network: Network) -> AsyncIterator[Network]:
    await network.open()
    try:
        yield network
    finally:
        await network.close()


@contextlib.asynccontextmanager
async def echo_server(netns: str, address: str) -> AsyncIterator[None]:
    """A server on port 8080 of the namespace that says hello."""
    program = (
        "import socket; s = socket.create_server(('0.0.0.0', 8080)); print('up', flush=True)\n"
        "while True: c, _ = s.accept(); c.sendall(b'hello'); c.close()"
    )
    argv = ["ip", "netns", "exec", os.path.basename(netns), sys.executable, "-I", "-c", program]
    server = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
    try:
        assert server.stdout is not None
        assert await server.stdout.readline() == b"up\n"
        yield
    finally:
        server.kill()
        await server.wait()


async def fetch(host: str, port: int) -> bytes:
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(host, port)
        answer = await reader.read()
        writer.close()
        return answer


def running_in_group(group: int) -> list[str]:
    """Command names of the live processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = stat.read_text().partition("(")[2].rpartition(") ")
            state, _parent, pgrp = rest.split()[:3]
            if int(pgrp) == group and state != "Z":
                found.append(name)
    return found


async def until(condition: Callable[[], object], seconds: float = SECONDS) -> None:
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise TimeoutError("it never came true")


async def test_pod_is_reachable_by_its_address_and_host_port_and_leaves_nothing(place: Place) -> None:
    place.configure({"type": "portmap", "capabilities": {"portMappings": True}, "snat": True})
    host_port = 20000 + secrets.randbelow(10000)
    attachment = place.attachment(port_mappings=(PortMapping(host_port, 8080), PortMapping(0, 9090)))
    async with opened(place.network()) as network:
        result = await network.add(attachment)
        assert len(result.ips) == 1
        assert result.ips[0].startswith(place.subnet.rpartition(".")[0])
        async with echo_server(place.netns, result.ips[0]):
            assert await fetch(result.ips[0], 8080) == b"hello"
            assert await fetch("127.0.0.1", host_port) == b"hello"
        assert network.attachments() == [attachment]
        with pytest.raises(NetworkError, match="already attached"):
            await network.add(attachment)

        await network.remove(attachment)
        place.assert_nothing_left()
        await network.remove(attachment)
    place.assert_nothing_left()


async def test_check_tells_what_went_missing(place: Place) -> None:
    place.configure(masquerade=False)
    async with opened(place.network()) as network:
        await network.add(place.attachment())
        await network.check(place.attachment())
        run("ip", "-n", os.path.basename(place.netns), "link", "delete", "eth0")
        with pytest.raises(PluginFailed, match='"bridge" CHECK'):
            await network.check(place.attachment())
        await network.remove(place.attachment())
    place.assert_nothing_left()


async def test_pod_leaves_the_network_it_joined_though_namespace_and_configuration_are_gone(place: Place) -> None:
    place.configure(masquerade=False)  # a reboot drops rules; the bridge plugin keeps them when the namespace is gone
    async with opened(place.network()) as network:
        await network.add(place.attachment())
    run("ip", "netns", "delete", os.path.basename(place.netns))
    (place.conf_dir / "10-test.conflist").unlink()
    assert len(place.leases()) == 1
    async with opened(place.network()) as network:
        assert not network.status().ready
        [attachment] = network.attachments()
        await network.remove(attachment)
    place.assert_nothing_left()


async def test_failed_add_is_undone_and_names_the_plugin(place: Place) -> None:
    place.script("faulty", 'cat >/dev/null; [ $CNI_COMMAND = ADD ] || exit 0; '
                 'echo \'{"cniVersion":"1.0.0","code":107,"msg":"no luck","details":"none at all"}\'; exit 1')
    place.configure({"type": "faulty"})
    async with opened(place.network()) as network:
        with pytest.raises(PluginFailed, match=r'"faulty" ADD: no luck: none at all \(code 107\)') as caught:
            await network.add(place.attachment())
        assert (caught.value.plugin, caught.value.command, caught.value.code) == ("faulty", "ADD", 107)
    place.assert_nothing_left()


async def test_what_undoing_could_not_remove_is_removed_later(place: Place) -> None:
    place.script("faulty", "cat >/dev/null; echo boom >&2; exit 3")
    place.configure({"type": "faulty"})
    async with opened(place.network()) as network:
        with pytest.raises(PluginFailed, match="ADD: exit status 3: boom"):
            await network.add(place.attachment())
        assert network.attachments() == [place.attachment()]
        with pytest.raises(PluginFailed, match="DEL: exit status 3: boom"):
            await network.remove(place.attachment())
        place.script("faulty", "cat >/dev/null")
        await network.remove(place.attachment())
    place.assert_nothing_left()


async def test_missing_plugin_is_refused_before_anything_is_made(place: Place) -> None:
    place.configure({"type": "absent"})
    async with opened(place.network()) as network:
        status = network.status()
        assert not status.ready
        assert f'find plugin "absent": not in {place.root}/bin, {PLUGINS}' in status.message
        with pytest.raises(PluginNotFound, match='"absent"'):
            await network.add(place.attachment())
    assert list((place.root / "cache").iterdir()) == []
    assert not (place.root / "leases").exists()


async def test_cancelled_and_endless_plugins_are_killed_and_undone(place: Place) -> None:
    marker = place.root / "pids"
    place.script("endless", f"cat >/dev/null; [ $CNI_COMMAND = ADD ] || exit 0; echo $$ >> {marker}; sleep 1000; true")
    place.configure({"type": "endless"})
    async with opened(place.network()) as network:
        adding = asyncio.create_task(network.add(place.attachment()))
        await until(marker.exists)
        adding.cancel()
        with pytest.raises(asyncio.CancelledError):
            await adding
    place.assert_nothing_left()
    async with opened(place.network(seconds=1.0)) as network:
        with pytest.raises(PluginFailed, match="ADD: no answer within 1 s"):
            await network.add(place.attachment())
    place.assert_nothing_left()
    for pid in marker.read_text().split():
        assert running_in_group(int(pid)) == []


async def test_killed_in_the_middle_of_an_add_it_can_still_be_undone(place: Place) -> None:
    marker = place.root / "pid"
    place.script("endless", f"cat >/dev/null; [ $CNI_COMMAND = ADD ] || exit 0; echo $$ > {marker}; exec sleep 1000")
    place.configure({"type": "endless"})
    program = f"""
import asyncio
from pathlib import Path
from network.model import Attachment
from network.network import Network
async def main():
    network = Network(Path({str(place.conf_dir)!r}), [Path({str(place.root / "bin")!r}), Path({str(PLUGINS)!r})],
                      Path({str(place.root / "cache")!r}))
    await network.open()
    await network.add(Attachment({place.sandbox_id!r}, {place.netns!r}, "web", "default", "uid-1"))
asyncio.run(main())
"""
    daemon = await asyncio.create_subprocess_exec(sys.executable, "-c", program, cwd=Path(__file__).parents[2])
    await until(lambda: marker.exists() and marker.read_text().strip())
    daemon.kill()
    await daemon.wait()
    os.kill(int(marker.read_text()), signal.SIGKILL)
    assert len(place.leases()) == 1

    async with opened(place.network()) as network:
        await network.gc(valid=[])
    place.assert_nothing_left()


async def test_status_follows_the_configuration_directory(place: Place) -> None:
    async with opened(place.network()) as network:
        assert "no network configuration in" in network.status().message
        assert network.status().reason == "NetworkPluginNotReady"
        with pytest.raises(NetworkNotReady):
            await network.add(place.attachment())
        await network.remove(place.attachment())
        for _ in range(2):  # the directory itself comes and goes
            place.configure()
            await until(lambda: network.status().ready)
            (place.conf_dir / "05-broken.conflist").write_text("{")
            await until(lambda: "05-broken.conflist" in str(network.describe()["problems"]))
            assert network.status().ready
            (place.conf_dir / "10-test.conflist").rename(place.root / "aside")
            await until(lambda: not network.status().ready)
            assert "05-broken.conflist" in network.status().message
            (place.root / "aside").rename(place.conf_dir / "20-other.conflist")
            await until(lambda: network.status().ready)
            place.conf_dir.rename(place.root / "elsewhere")
            await until(lambda: not network.status().ready)
            run("rm", "-r", str(place.root / "elsewhere"))
