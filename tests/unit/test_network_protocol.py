"""What plugins are told, in which order and when: scripts stand in for plugins and write down what they got."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from linux import inotify
from network import readiness
from network.errors import NetworkBusy, NetworkError, PluginFailed, PluginNotFound
from network.model import DNS, Attachment, PortMapping
from network.network import Network
from network.plugin import find_plugin, run_plugin
from tests.waiting import eventually

POD = Attachment("s1", "/proc/self/ns/net", "web", "default", "uid-1")
RESULT = {"cniVersion": "1.1.0", "ips": [{"address": "10.0.0.2/24"}]}


@dataclass
class Stage:
    """A configuration of scripts, which append what they are told to a journal of their own."""

    root: Path
    network: Network

    def plugin(self, name: str, answer: object = RESULT, also: str = "") -> None:
        path = self.root / "bin" / name
        journal = self.root / "journal" / name
        path.write_text(
            f"#!/bin/sh\nn={journal}.$$.$CNI_COMMAND\nenv > $n.env; cat > $n.json\n"
            f"echo {name} $$ $CNI_COMMAND >> {self.root}/order\n{also}\necho '{json.dumps(answer)}'\n"
        )
        path.chmod(0o755)

    def configure(self, *plugins: dict[str, Any], version: str = "1.1.0", **fields: Any) -> None:
        conflist = {"cniVersion": version, "name": "net", "plugins": list(plugins), **fields}
        (self.root / "net.d" / "10.conflist.tmp").write_text(json.dumps(conflist, indent=1))
        os.rename(self.root / "net.d" / "10.conflist.tmp", self.root / "net.d" / "10.conflist")

    def told(self, *commands: str) -> list[tuple[str, str, dict[str, str], dict[str, Any]]]:
        """(plugin, command, environment, configuration) in the order of the calls of `commands`, then forgotten."""
        calls = []
        for line in (self.root / "order").read_text().splitlines() if (self.root / "order").exists() else []:
            name, pid, command = line.split()
            stem = self.root / "journal" / f"{name}.{pid}.{command}"
            environment = dict(pair.split("=", 1) for pair in Path(f"{stem}.env").read_text().splitlines())
            calls.append((name, command, environment, json.loads(Path(f"{stem}.json").read_text())))
        (self.root / "order").unlink(missing_ok=True)
        return [call for call in calls if call[1] in commands]


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    for name in ("bin", "net.d", "journal"):
        (tmp_path / name).mkdir()
    network = Network(tmp_path / "net.d", [tmp_path / "bin"], tmp_path / "cache", plugin_seconds=10)
    await network.open()
    yield Stage(tmp_path, network)
    await network.close()


async def until_ready(network: Network, ready: bool = True) -> None:
    for _ in range(500):
        if network.status().ready == ready:
            return
        await asyncio.sleep(0.01)
    raise TimeoutError(network.status().message)


async def test_plugins_are_told_what_the_specification_says(stage: Stage) -> None:
    stage.plugin("first", {**RESULT, "from": "first"})
    stage.plugin("second", {**RESULT, "from": "second"})
    stage.configure({"type": "first", "mtu": 1400, "name": "overridden"}, {"type": "second"})
    await until_ready(stage.network)

    assert (await stage.network.add(POD)).ips == ("10.0.0.2",)
    await stage.network.check(POD)
    await stage.network.remove(POD)

    calls = stage.told("ADD", "CHECK", "DEL")
    assert [" ".join(call[:2]) for call in calls] == [
        "first ADD", "second ADD", "first CHECK", "second CHECK", "second DEL", "first DEL",
    ]  # fmt: skip
    for _, command, environment, _ in calls:
        assert {key: value for key, value in environment.items() if key not in ("PWD", "SHLVL", "_", "OLDPWD")} == {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "s1",
            "CNI_NETNS": "/proc/self/ns/net",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;"
            "K8S_POD_INFRA_CONTAINER_ID=s1;K8S_POD_UID=uid-1",
            "CNI_PATH": str(stage.root / "bin"),
            "PATH": os.environ["PATH"],
        }
    config = {"cniVersion": "1.1.0", "name": "net"}
    assert calls[0][3] == {"type": "first", "mtu": 1400, **config}
    previous = [call[3].get("prevResult", {}).get("from") for call in calls]
    assert previous == [None, "first", "second", "second", "second", "second"]


async def test_each_plugin_gets_the_runtime_config_it_asked_for(stage: Stage) -> None:
    stage.plugin("all")
    stage.plugin("none")
    names = ["portMappings", "bandwidth", "dns", "cgroupPath", "ips", "mac", "aliases"]
    names.append("io.kubernetes.cri.pod-annotations")
    everything_of = {"type": "all", "capabilities": dict.fromkeys(names, True)}
    stage.configure(everything_of, {"type": "none", "capabilities": {"mac": False}})
    await until_ready(stage.network)
    annotations = {"kubernetes.io/egress-bandwidth": "1M", "a": "b"}
    asked = Attachment(
        "s1", "", "web", "default", "uid-1", "eth0", (PortMapping(80, 8080, "TCP", "10.1.1.1"), PortMapping(0, 1)),
        DNS(("10.0.0.10",), (), ("ndots:5",)), "/pods/s1", annotations, ("10.0.0.7/24",), "02:00:00:00:00:01",
    )  # fmt: skip
    await stage.network.add(asked)
    (_, _, _, everything), (_, _, _, nothing) = stage.told("ADD")
    assert everything["runtimeConfig"] == {
        "portMappings": [{"hostPort": 80, "containerPort": 8080, "protocol": "tcp", "hostIP": "10.1.1.1"}],
        "bandwidth": {"egressRate": 1_000_000, "egressBurst": 2**32 - 1},
        "dns": {"servers": ["10.0.0.10"], "options": ["ndots:5"]},
        "cgroupPath": "/pods/s1",
        "io.kubernetes.cri.pod-annotations": annotations,
        "ips": ["10.0.0.7/24"],
        "mac": "02:00:00:00:00:01",
    }
    assert "runtimeConfig" not in nothing
    assert stage.network.attachments() == [asked]


async def test_old_lists_are_spared_what_they_do_not_know(stage: Stage) -> None:
    stage.plugin("first", {"ip4": {"ip": "10.0.0.2/24"}})
    stage.configure({"type": "first"}, version="0.3.1")
    await until_ready(stage.network)
    assert (await stage.network.add(POD)).ips == ("10.0.0.2",)
    await stage.network.check(POD)
    await stage.network.remove(POD)
    await stage.network.gc([])
    [(_, added, _, _), (_, deleted, _, config)] = stage.told("ADD", "DEL", "CHECK", "GC", "STATUS")
    assert (added, deleted) == ("ADD", "DEL")
    assert "prevResult" not in config


async def test_check_and_gc_can_be_forbidden(stage: Stage) -> None:
    stage.plugin("first")
    stage.configure({"type": "first"}, disableCheck=True, disableGC=True)
    await until_ready(stage.network)
    await stage.network.add(POD)
    await stage.network.check(POD)
    await stage.network.gc([POD])
    assert [call[1] for call in stage.told("ADD", "DEL", "CHECK", "GC")] == ["ADD"]
    with pytest.raises(NetworkError, match="check other eth0: it is not attached"):
        await stage.network.check(Attachment("other", "", "p", "n", "u"))


async def test_gc_removes_what_is_stale_and_tells_the_plugins_what_stays(stage: Stage) -> None:
    stage.plugin("first")
    stage.configure({"type": "first"})
    await until_ready(stage.network)
    stale = Attachment("s2", "/proc/self/ns/net", "old", "default", "uid-2")
    await stage.network.add(POD)
    await stage.network.add(stale)
    await stage.network.gc([POD])
    assert stage.network.attachments() == [POD]
    deleted, collected = stage.told("DEL", "GC")
    assert deleted[2]["CNI_CONTAINERID"] == "s2"
    assert {key for key in collected[2] if key.startswith("CNI_")} == {"CNI_COMMAND", "CNI_PATH"}
    assert collected[3]["cni.dev/valid-attachments"] == [{"containerID": "s1", "ifname": "eth0"}]

    stage.plugin("first", {"code": 50, "msg": "not today"}, also='[ $CNI_COMMAND = GC ] && { echo "$0" >&2; exit 1; }')
    with pytest.raises(NetworkError, match=r"garbage-collect the network: .*first"):
        await stage.network.gc([POD])


async def test_a_missing_plugin_keeps_no_other_from_removing(stage: Stage) -> None:
    for name in ("first", "second", "third"):
        stage.plugin(name)
    stage.configure(*({"type": name} for name in ("first", "second", "third")))
    await until_ready(stage.network)
    await stage.network.add(POD)
    (stage.root / "bin" / "second").rename(stage.root / "aside")
    with pytest.raises(PluginNotFound, match='"second"'):
        await stage.network.remove(POD)
    assert [call[0] for call in stage.told("DEL")] == ["third", "first"]
    assert stage.network.attachments() == [POD]  # what "second" made is still to be removed
    (stage.root / "aside").rename(stage.root / "bin" / "second")
    await stage.network.remove(POD)
    assert [call[0] for call in stage.told("DEL")] == ["third", "second", "first"]
    assert stage.network.attachments() == []


async def test_plugins_are_never_asked_for_an_add_and_a_gc_at_once(stage: Stage) -> None:
    gate = stage.root / "gate"
    stage.plugin("first", also=f"while [ -e {gate} ]; do sleep 0.01; done")
    stage.configure({"type": "first"})
    await until_ready(stage.network)
    order = stage.root / "order"
    gate.touch()
    adding = asyncio.create_task(stage.network.add(POD))
    await eventually(lambda: order.exists() and "ADD" in order.read_text())
    with pytest.raises(NetworkBusy):
        await stage.network.gc([POD])
    gate.unlink()
    await adding
    gate.touch()
    collecting = asyncio.create_task(stage.network.gc([POD]))
    await eventually(lambda: "GC" in order.read_text())
    later = Attachment("s2", "/proc/self/ns/net", "new", "default", "uid-2")
    adding = asyncio.create_task(stage.network.add(later))
    await eventually(lambda: later in stage.network.attachments())
    assert order.read_text().count("ADD") == 1
    gate.unlink()
    await asyncio.gather(collecting, adding)
    assert [call[1] for call in stage.told("ADD", "GC")] == ["ADD", "GC", "ADD"]


async def test_status_asks_plugins_of_1_1_and_again_when_the_answer_is_old(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    sick = stage.root / "sick"
    sick.touch()
    complaint = json.dumps({"cniVersion": "1.1.0", "code": 50, "msg": "the agent is away"})
    stage.plugin("first", also=f"[ -e {sick} ] && {{ echo '{complaint}'; exit 1; }}")
    stage.configure({"type": "first"})
    for _ in range(300):
        if "the agent is away" in stage.network.status().message:
            break
        await asyncio.sleep(0.01)
    assert stage.network.status().message == 'run plugin "first" STATUS: the agent is away (code 50)'
    sick.unlink()
    for _ in range(20):
        assert not stage.network.status().ready  # the answer is believed for a while: one process, not twenty
        await asyncio.sleep(0.01)
    assert len(stage.told("STATUS")) == 1
    monkeypatch.setattr(readiness, "FRESH_SECONDS", 0.0)
    await until_ready(stage.network)


async def test_attachment_that_is_not_cached_leaves_by_the_present_list(stage: Stage) -> None:
    await stage.network.remove(POD)
    stage.plugin("first")
    stage.configure({"type": "first"})
    await until_ready(stage.network)
    await stage.network.remove(Attachment("s1", "/run/netns/gone", "web", "default", "uid-1"))
    [(_, command, environment, config)] = stage.told("ADD", "DEL")
    assert (command, environment["CNI_NETNS"], "prevResult" in config) == ("DEL", "", False)
    await stage.network.remove(Attachment("../s1", "", "web", "default", "uid-1"))  # can never have been added
    assert stage.told("DEL") == []


async def test_torn_answer_is_no_answer_and_unreadable_entry_is_no_entry(stage: Stage) -> None:
    stage.plugin("first")
    stage.configure({"type": "first"})
    await until_ready(stage.network)
    await stage.network.add(POD)
    entry = stage.root / "cache" / "s1@eth0.json"
    entry.write_bytes(entry.read_bytes()[:-20])  # the answer is torn; what was asked for is not
    assert stage.network.attachments() == [POD]
    with pytest.raises(NetworkError, match="it is not attached"):
        await stage.network.check(POD)
    entry.write_bytes(b"")
    assert stage.network.attachments() == []
    await stage.network.remove(POD)
    assert list((stage.root / "cache").iterdir()) == []


async def test_entry_is_durable_before_the_first_plugin_runs(stage: Stage) -> None:
    stage.plugin("first", also=f"cat {stage.root}/cache/s1@eth0.json > {stage.root}/seen")
    stage.configure({"type": "first"})
    await until_ready(stage.network)
    await stage.network.add(POD)
    seen = json.loads((stage.root / "seen").read_text())
    assert seen["attachment"]["sandbox_id"] == "s1"
    assert seen["conflist"]["plugins"] == [{"type": "first"}]
    assert "result" not in seen


async def test_operations_on_one_attachment_wait_for_each_other(stage: Stage) -> None:
    stage.plugin("first", also=f"sleep 0.1; echo $CNI_COMMAND >> {stage.root}/ended")
    stage.configure({"type": "first"}, version="1.0.0")
    await until_ready(stage.network)
    await asyncio.gather(stage.network.add(POD), stage.network.remove(POD))
    assert (stage.root / "ended").read_text().split() == ["ADD", "DEL"]
    assert stage.network.attachments() == []


async def test_without_inotify_the_directory_is_read_at_each_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(self: inotify.Inotify) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(inotify.Inotify, "__init__", exhausted)
    (tmp_path / "plain").touch(mode=0o755)
    network = Network(tmp_path, [tmp_path], tmp_path / "cache")
    await network.open()
    assert not network.status().ready
    (tmp_path / "10.conf").write_text('{"cniVersion":"0.4.0","name":"n","type":"plain"}')
    assert network.status().ready
    await network.close()


async def test_binaries_are_found_in_order_and_only_there(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "x").touch(mode=0o644)
    (tmp_path / "b" / "x").touch(mode=0o755)
    assert find_plugin("x", [tmp_path / "a", tmp_path / "b"]) == tmp_path / "b" / "x"
    for name in ("y", "../b/x", str(tmp_path / "b" / "x")):
        with pytest.raises(PluginNotFound):
            find_plugin(name, [tmp_path / "a"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("exec yes", "printed more than 1048576 bytes"),
        ("kill -9 $$", "killed by signal 9"),
        ("echo lost >&2; exit 2", "exit status 2: lost"),
        ("exec sleep 100", "no answer within 0.5 s"),
    ],
)
async def test_misbehaving_plugins_are_ended_and_reported(tmp_path: Path, text: str, reason: str) -> None:
    binary = tmp_path / "odd"
    binary.write_text(f"#!/bin/sh\n{text}\n")
    binary.chmod(0o755)
    seconds = 0.5 if "sleep" in text else 60
    with pytest.raises(PluginFailed, match=f'^run plugin "odd" ADD: {reason}'):
        await run_plugin(binary, {"CNI_COMMAND": "ADD", "PATH": os.environ["PATH"]}, b"{}", seconds)


async def test_plugin_that_reads_nothing_and_leaves_its_output_open_is_no_trouble(tmp_path: Path) -> None:
    binary = tmp_path / "odd"
    binary.write_text("#!/bin/sh\nsetsid sleep 20 &\necho '{}'\n")  # longer than it may take to answer
    binary.chmod(0o755)
    stdout = await run_plugin(binary, {"CNI_COMMAND": "ADD", "PATH": os.environ["PATH"]}, b" " * 500_000, 10)
    assert stdout == b"{}\n"


async def test_binary_that_cannot_be_executed_is_reported(tmp_path: Path) -> None:
    binary = tmp_path / "odd"
    binary.write_bytes(b"\x7fELF nonsense")
    binary.chmod(0o755)
    with pytest.raises(PluginFailed, match=r'run plugin "odd" ADD: cannot be started: Exec format error'):
        await run_plugin(binary, {"CNI_COMMAND": "ADD"}, b"{}", 1)
