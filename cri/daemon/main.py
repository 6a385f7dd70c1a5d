"""crispd's main program: reads the configuration, locks its directories, opens the node, serves CRI until stopped.

Containers belong to their shims and do not notice whether and how the daemon ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cri import logfmt
from cri.daemon.command_line import command_line
from cri.daemon.config import KEYS, Configuration
from cri.daemon.directories import occupied
from cri.daemon.keys import Component
from cri.daemon.loading import load
from cri.daemon.notify import Notifier
from cri.errors import ConfigurationError, DaemonError, StartupError
from cri.streaming.address import StreamAddress
from image.settings import ImageSettings
from pods.settings import NodeSettings

if TYPE_CHECKING:
    from cri.daemon.monitoring import Monitor
    from cri.daemon.tracing import Tracing
    from cri.streaming.server import StreamingServer
    from pods.node import Node
    from pods.trace import Around

_ROOT_MODE = 0o700  # images hold set-uid programs: no local user may reach them by path (CVE-2021-41103)
_STATE_MODE = 0o711
_GRACE_SECONDS = 5.0  # for calls in flight when the daemon stops
# gRPC's newer I/O passes each message through a pool of threads: 16 context switches and 0.8 ms of CPU an empty call,
# instead of 9 and 0.6 ms. A gRPC that does not know a name ignores it.
GRPC_EXPERIMENTS = "-event_engine_listener,-event_engine_client"

_log = logging.getLogger("cri.daemon")  # stable for users who filter the log, unlike the module's name

Reload = Callable[[], Configuration]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns 0 after a stop by SIGTERM or SIGINT, otherwise 1 with a message on stderr."""
    options = vars(command_line().parse_args(arguments))
    path: Path | None = options.pop("config")

    def reload() -> Configuration:
        return load(options, path)

    try:
        run(reload(), reload)
    except DaemonError as error:
        print(f"crispd: {error}", file=sys.stderr)
        return 1
    return 0


def run(configuration: Configuration, reload: Reload) -> None:
    """Serve until a signal arrives. Raises StartupError."""
    if os.geteuid() != 0:
        raise StartupError("start: crispd must run as root: try sudo crispd")
    logfmt.start(logfmt.LEVELS[configuration.log_level])
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C core would write to stderr in a format of its own
    os.environ.setdefault("GRPC_EXPERIMENTS", GRPC_EXPERIMENTS)
    # Imported late: gRPC, the HTTP client and the node take ten times as long to import as everything above.
    from cri.codes import code_of
    from pods.node import Node

    raise_descriptor_limit()
    with occupied(configuration.state, _STATE_MODE), occupied(configuration.root, _ROOT_MODE):
        try:
            asyncio.run(serve(configuration, Node.open, reload))
        except Exception as error:
            if code_of(error) is None:
                raise
            raise StartupError(f"open the node: {error}") from error


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard limit. Returns the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


async def serve(
    configuration: Configuration,
    open_node: Callable[[NodeSettings, Around | None], Awaitable[Node]],
    reload: Reload,
    notifier: Notifier | None = None,
) -> None:
    """Open the node and serve it on the configured socket. Stops on SIGTERM and SIGINT, reloads on SIGHUP."""
    from cri.server import create_server
    from cri.sockets import bound
    from cri.streaming.server import StreamingServer

    notifier = notifier or Notifier()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as undo:
        tracing = _tracing(configuration, undo)
        node = await open_node(settings(configuration), tracing.around if tracing is not None else None)
        undo.push_async_callback(node.close)
        if tracing is not None:
            node.step_reports.append(tracing.step)
        address = StreamAddress(**configuration.of(Component.STREAMING))
        level = logfmt.LEVELS[configuration.log_level]
        streaming = StreamingServer(address, configuration.state, node.place_streams, level)
        undo.push_async_callback(streaming.close)
        await streaming.start()
        monitor = await _monitor(node, streaming, configuration.metrics_addr, undo)
        await _plugins(node, configuration, undo)
        server = create_server(node, streaming, configuration.values(), monitor, tracing, node.recorder)
        undo.enter_context(bound(server, configuration.socket))
        await server.start()
        undo.push_async_callback(server.stop, _GRACE_SECONDS)
        undo.callback(node.bulletins.close)
        undo.callback(node.events.close)  # or open event streams would last until the grace period ends
        loop.add_signal_handler(signal.SIGHUP, _reload, node, streaming, configuration, reload, notifier)
        keeping_alive = loop.create_task(notifier.keep_alive())
        undo.callback(keeping_alive.cancel)
        # The garbage collector need not visit again what is alive now (descriptors of messages, modules).
        gc.collect()
        gc.freeze()
        notifier.ready()
        _log.info("serving", extra={"listen": configuration.listen, "root": configuration.root})
        await stop.wait()
        notifier.stopping()
        _log.info("stopping; containers keep running")


async def _plugins(node: Node, configuration: Configuration, undo: contextlib.AsyncExitStack) -> None:
    """Serve NRI plugins, if there is a socket. Raises StartupError.

    Not so for the default socket, which another runtime may serve, unless pods need a plugin.
    """
    path, policies = configuration.nri_socket, configuration.nri_plugins
    required = any(policy.required for policy in policies.values())
    if path is None and required:
        raise StartupError("nri_plugins: pods need a plugin, and nri_socket is empty: set it")
    if path is not None:
        from cri.nri.hub import Hub

        hub = Hub(node, path, policies)
        undo.push_async_callback(hub.close)
        try:
            await hub.start()
        except StartupError as error:
            if required or path != KEYS["nri_socket"].default:
                raise
            _log.warning("could not serve NRI plugins; going on without", extra={"error": error})


async def _monitor(
    node: Node, streaming: StreamingServer, address: str, undo: contextlib.AsyncExitStack
) -> Monitor | None:
    """Serve metrics at `address`. Returns None if it is ""."""
    if not address:
        return None
    from cri.daemon.monitoring import Monitor

    monitor = Monitor(node, streaming)
    undo.push_async_callback(monitor.close)
    await monitor.start(address)
    node.step_reports.append(monitor.step)
    return monitor


def _tracing(configuration: Configuration, undo: contextlib.AsyncExitStack) -> Tracing | None:
    """Start tracing. Returns None if it is not configured. Raises StartupError."""
    if not configuration.tracing_endpoint:
        return None
    try:
        from cri.daemon.tracing import Tracing
    except ImportError as error:
        wanted = "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-grpc"
        command = f"{Path(sys.executable).parent}/{wanted}"
        raise StartupError(f"tracing_endpoint: {error}; install it with: {command}") from error
    tracing = Tracing(**configuration.of(Component.TRACING))
    undo.push_async_callback(tracing.close)
    return tracing


def settings(configuration: Configuration) -> NodeSettings:
    """Return the node's part of the configuration."""
    images = ImageSettings(**configuration.of(Component.IMAGES))
    return NodeSettings(**configuration.of(Component.NODE), images=images)


def _reload(
    node: Node, streaming: StreamingServer, configuration: Configuration, reload: Reload, notifier: Notifier
) -> None:
    """Apply the keys that can change while serving, and renewed certificates."""
    notifier.reloading()
    try:
        wanted = reload()
        streaming.reload(logfmt.LEVELS[wanted.log_level])
    except (ConfigurationError, StartupError) as error:
        _log.error("could not reload the configuration; the old one stays in force", extra={"error": error})
    else:
        logfmt.set_level(logfmt.LEVELS[wanted.log_level])
        node.trace_start = wanted.trace_start
        pending = [key for key in changed(configuration.values(), wanted.values()) if not KEYS[key].reloaded]
        if pending:
            _log.warning("some configuration changes need a restart of crispd", extra={"keys": ",".join(pending)})
        reloaded = {name: getattr(wanted, name) for name, key in KEYS.items() if key.reloaded}
        _log.info("configuration reloaded", extra=reloaded)
    notifier.ready()


def changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the keys whose values differ."""
    return [key for key in old if old[key] != new[key]]
