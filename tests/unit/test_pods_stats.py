"""What pods and containers use: rates, counts of files, counts of packets, descriptors."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from pods.stats import tally
from pods.stats.cpu_rates import CpuRates
from pods.stats.interfaces import Interface, interfaces, parse
from pods.stats.processes import look_at
from pods.stats.writable_layers import WritableLayers

SECOND = 1_000_000_000
NET_DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  net1:       1       2    3    4    0     0          0         0        5       6    7    8    0     0       0          0
  eth0: 1234567      20    1    2    0     0          0         0       99      10    3    4    0     0       0          0
"""  # noqa: E501


def test_a_rate_is_the_mean_of_the_last_ten_seconds_however_often_it_is_asked_for() -> None:
    rates = CpuRates()
    assert rates.rate("c", 0, 0) is None
    assert rates.rate("c", SECOND // 10, SECOND) is None  # too short to tell
    for second in range(1, 31):  # half a processor, asked for each second
        rate = rates.rate("c", second * SECOND, second * SECOND // 2)
        assert rate == SECOND // 2
    # From now on two processors: after five seconds half of the window has them, after ten all of it.
    used = 15 * SECOND
    seen = [rates.rate("c", (30 + s) * SECOND, used + 2 * s * SECOND) for s in range(1, 11)]
    assert seen[4] == (5 * SECOND // 2 + 10 * SECOND) // 10
    assert seen[9] == 2 * SECOND


def test_the_first_rate_of_a_young_container_is_the_mean_since_its_start() -> None:
    assert CpuRates().rate("c", 14 * SECOND, SECOND, begun=10 * SECOND) == SECOND // 4
    assert CpuRates().rate("c", 10 * SECOND + 5, 5, begun=10 * SECOND) is None


def test_a_rate_over_a_long_time_is_none_of_the_present() -> None:
    rates = CpuRates()
    rates.rate("c", 0, 0)
    assert rates.rate("c", 3600 * SECOND, SECOND) is None
    assert rates.rate("c", 3660 * SECOND, 31 * SECOND) == SECOND // 2


def test_a_cgroup_made_anew_starts_from_nothing() -> None:
    rates = CpuRates()
    rates.rate("c", 0, 100 * SECOND)
    assert rates.rate("c", 5 * SECOND, SECOND) is None
    assert rates.rate("c", 7 * SECOND, 2 * SECOND) == SECOND // 2


def test_what_is_no_more_is_forgotten() -> None:
    rates = CpuRates()
    rates.rate("c", 0, 0)
    rates.keep(["other"])
    assert rates.rate("c", 5 * SECOND, SECOND) is None


async def test_a_layer_is_what_its_files_take_and_no_link_leads_out_of_it(tmp_path: Path) -> None:
    outside, layer = tmp_path / "outside", tmp_path / "upper"
    (layer / "deep/er").mkdir(parents=True)
    outside.mkdir()
    (outside / "big").write_bytes(b"x" * (1 << 20))
    (layer / "link").symlink_to(outside)
    (layer / "deep/er/file").write_bytes(b"x" * 100_000)
    os.link(layer / "deep/er/file", layer / "again")
    with (layer / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    layers = WritableLayers()
    try:
        found = (await layers.usage(["c"], lambda _: tmp_path))["c"]
        assert found.inodes == 6  # layer, deep, er, link, the file under two names, sparse
        assert 100_000 <= found.bytes < 200_000
        # A count stands for a while.
        (layer / "new").write_bytes(b"x" * (1 << 20))
        assert (await layers.usage(["c"], lambda _: tmp_path))["c"] == found
    finally:
        layers.close()


async def test_layers_of_many_containers_are_counted_by_one_job(tmp_path: Path) -> None:
    """Each has a count of its own, and is counted again when its time has come."""
    for number in range(300):
        (tmp_path / f"{number}/upper").mkdir(parents=True)
    names = [str(number) for number in range(300)]
    layers = WritableLayers()
    try:
        assert (await layers.usage(names[:1], lambda name: tmp_path / name)).keys() == {"0"}
        while len(found := await layers.usage(names, lambda name: tmp_path / name)) < 300:
            pass
        assert {use.inodes for use in found.values()} == {1}
        (tmp_path / "7/upper/file").touch()
        layers._known["7"].due = 0.0
        while (await layers.usage(names, lambda name: tmp_path / name))["7"].inodes != 2:
            pass
    finally:
        layers.close()


async def test_a_layer_of_any_number_of_linked_files_is_counted_in_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tally, "_MOST_LINKED", 5)
    for number in range(20):
        (tmp_path / f"{number}").write_bytes(b"x" * 4096)
        for name in ("a", "b"):
            os.link(tmp_path / f"{number}", tmp_path / f"{number}{name}")
    counted = tally.Tally(lambda: False)
    counted.add(tmp_path)
    assert round(counted.inodes) == 21
    assert round(counted.bytes) == tmp_path.stat().st_blocks * 512 + 20 * 4096
    assert len(counted._linked) == 5


def test_interfaces_are_those_of_net_dev_with_the_default_one_first() -> None:
    assert parse(NET_DEV) == (
        Interface("eth0", 1234567, 20, 1, 2, 99, 10, 3, 4),
        Interface("net1", 1, 2, 3, 4, 5, 6, 7, 8),
    )


def test_interfaces_of_a_process_in_another_namespace_are_not_the_pods(tmp_path: Path) -> None:
    (tmp_path / "7/net").mkdir(parents=True)
    (tmp_path / "7/net/dev").write_text(NET_DEV)
    (tmp_path / "7/ns").mkdir()
    (tmp_path / "7/ns/net").touch()
    (tmp_path / "pinned").touch()
    assert interfaces(7, str(tmp_path / "7/ns/net"), str(tmp_path))
    assert interfaces(7, str(tmp_path / "pinned"), str(tmp_path)) == ()
    assert interfaces(8, str(tmp_path / "pinned"), str(tmp_path)) == ()


def test_descriptors_and_sockets_of_processes_are_counted() -> None:
    before = look_at([os.getpid()], os.getpid())
    with socket.socket():
        after = look_at([os.getpid(), 2**22 + 1], os.getpid())
    assert (after.count, after.descriptors - before.descriptors, after.sockets - before.sockets) == (1, 1, 1)
    assert after.open_files_limit is None or after.open_files_limit > 0
