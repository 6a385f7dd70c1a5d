"""The daemon around the server: sockets, locks, signals, the service manager, the log."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc._cython import cygrpc

from cri import logfmt
from cri.daemon import main as daemon
from cri.daemon.config import Configuration
from cri.daemon.directories import occupied
from cri.daemon.loading import load
from cri.daemon.main import GRPC_EXPERIMENTS, raise_descriptor_limit
from cri.daemon.notify import Notifier
from cri.errors import ConfigurationError, StartupError
from cri.sockets import bound
from cri.v1 import api_pb2, api_pb2_grpc
from pods.settings import NodeSettings
from tests.unit.cri_fakes import FakeNode


class Manager:
    """A service manager's end of NOTIFY_SOCKET."""

    def __init__(self, directory: Path) -> None:
        self.address = str(directory / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.setblocking(False)

    async def receive(self) -> str:
        return (await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self._socket, 256), 60)).decode()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def root_logger() -> Any:
    root = logging.getLogger()
    level = root.level
    yield root
    logfmt.set_level(level)


def configured(directory: Path, **flags: Any) -> Configuration:
    return load({"listen": str(directory / "crisp.sock"), "root": "/r", "state": "/s", **flags})


async def start(
    configuration: Configuration, node: FakeNode, reload: Callable[[], Configuration], manager: Manager, **watchdog: str
) -> asyncio.Task[None]:
    notifier = Notifier({"NOTIFY_SOCKET": manager.address, **watchdog})

    async def open_node(settings: NodeSettings, _around: object) -> Any:
        assert (settings.root, settings.cgroup_driver) == (configuration.root, configuration.cgroup_driver)
        return node

    serving = asyncio.create_task(daemon.serve(configuration, open_node, reload, notifier))
    await asyncio.wait({serving, reading := asyncio.create_task(manager.receive())}, return_when="FIRST_COMPLETED")
    assert await reading == "READY=1"
    return serving


async def test_a_daemons_life(tmp_path: Path, root_logger: logging.Logger, caplog: pytest.LogCaptureFixture) -> None:
    manager, node = Manager(tmp_path), FakeNode()
    wanted = configured(tmp_path, log_level="debug", root="/elsewhere")
    answers: list[Configuration | Exception] = [wanted, ConfigurationError("f: k: bad")]

    def reload() -> Configuration:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    configuration = configured(tmp_path)
    serving = await start(configuration, node, reload, manager)
    assert configuration.socket.stat().st_mode & 0o777 == 0o600
    async with grpc.aio.insecure_channel(configuration.listen) as channel:
        stub: Any = api_pb2_grpc.RuntimeServiceStub(channel)
        assert (await stub.Version(api_pb2.VersionRequest(), timeout=10)).runtime_name == "crisp"

    os.kill(os.getpid(), signal.SIGHUP)
    assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", await manager.receive())
    assert await manager.receive() == "READY=1"
    assert root_logger.level == logging.DEBUG
    (pending,) = [record for record in caplog.records if "need a restart" in record.message]
    assert vars(pending)["keys"] == "root"
    os.kill(os.getpid(), signal.SIGHUP)
    await manager.receive()
    assert await manager.receive() == "READY=1"
    assert root_logger.level == logging.DEBUG

    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(serving, 60)
    assert await manager.receive() == "STOPPING=1"
    assert node.closed
    assert not configuration.socket.exists()
    manager.close()


async def test_the_watchdog_is_patted_by_the_process_it_watches(tmp_path: Path) -> None:
    manager = Manager(tmp_path)
    period = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "20000"}
    patting = asyncio.create_task(Notifier({**period, "WATCHDOG_PID": str(os.getpid())}).keep_alive())
    assert [await manager.receive() for _ in range(3)] == ["WATCHDOG=1"] * 3
    patting.cancel()
    await asyncio.wait_for(Notifier({**period, "WATCHDOG_PID": "1"}).keep_alive(), 60)
    manager.close()


def test_a_directory_belongs_to_one_daemon(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "state"
    with occupied(directory, 0o700):
        assert directory.stat().st_mode & 0o777 == 0o700
        taken = rf"use directory {directory}: another crispd \(pid {os.getpid()}\) uses it"
        with pytest.raises(StartupError, match=taken), occupied(directory, 0o700):
            pytest.fail("occupied twice")
    with occupied(directory, 0o700):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(StartupError, match=r"use directory .*/file: File exists"), occupied(tmp_path / "file", 0o700):
        pytest.fail("used a file as a directory")


async def test_the_socket_of_a_dead_daemon_is_replaced_and_of_a_living_one_kept(tmp_path: Path) -> None:
    path = tmp_path / "crisp.sock"
    other = socket.socket(socket.AF_UNIX)
    other.bind(str(path))
    server = grpc.aio.server()
    other.listen()
    with pytest.raises(StartupError, match="another process listens on that socket"), bound(server, path):
        pytest.fail("took a socket that is in use")
    other.close()
    with bound(server, path):
        await server.start()
        assert path.is_socket()
    assert not path.exists()
    path.write_text("precious")
    with pytest.raises(StartupError, match="not a socket"), bound(server, path):
        pytest.fail("replaced a file")
    await server.stop(None)


def test_the_descriptor_limit_is_raised_to_the_hard_one() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
        assert raise_descriptor_limit() == before[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--version"], 0, r"crispd \d+\.\d+\.\d+\S*\n"),
        (["--config", "/nonexistent"], 1, r"crispd: read configuration /nonexistent: No such file or directory\n"),
        (["--root", "here"], 1, r"crispd: --root: 'here' must be an absolute path\n"),
    ],
)
def test_the_command_fails_in_one_line(arguments: list[str], status: int, said: str) -> None:
    done = subprocess.run([sys.executable, "-m", "cri.daemon", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert re.fullmatch(said, done.stderr if status else done.stdout)


def test_a_line_of_the_log() -> None:
    record = logging.makeLogRecord(
        {"name": "pods.node", "levelno": logging.WARNING, "levelname": "WARNING", "msg": "stop %s", "args": ("x",)}
        | {"created": 1.5, "sandbox": "a b", "path": Path("/p"), "quoted": 'say "hi"\n'}
    )
    fields = r'level=warning logger=pods.node msg="stop x" sandbox="a b" path=/p quoted="say \"hi\"\n"'
    assert logfmt.LogfmtFormatter().format(record) == f"time=1970-01-01T00:00:01.500000Z {fields}"
    assert logfmt.LogfmtFormatter(journal=True).format(record) == f"<4>{fields}"
    try:
        raise KeyError("k")
    except KeyError:
        record.exc_info = sys.exc_info()
    line = logfmt.LogfmtFormatter().format(record)
    assert "\n" not in line
    assert "traceback=" in line


def test_the_installed_grpc_knows_the_experiments_that_are_off() -> None:
    """It ignores names that it does not know: each call would then cost a quarter more, and nobody would notice."""
    program = Path(cygrpc.__file__).read_bytes()
    for name in GRPC_EXPERIMENTS.split(","):
        assert name.removeprefix("-").encode() in program
