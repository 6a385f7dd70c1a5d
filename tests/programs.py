"""Programs that are checkpointed and restored, each with a question about its memory: its answer must not change.

Each keeps a random value which no other start of it would have. docs/checkpoints.md has `table()`.
"""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.images import BuiltImage, build_image, busybox_layer, entry, layer

IMAGE = "localhost/programs:latest"
BINARIES = {"python3": "/usr/bin/python3.11", "nginx": "/usr/sbin/nginx"} | {
    name: f"/usr/bin/{name}" for name in ("redis-server", "redis-cli")
}
# The first process of a container answers to a signal, once it listens.
_ASK = "rm -f /told; until test -s /told; do kill -USR1 1; sleep 0.1; done; cat /told"
_SHELL = "v=$(cat /proc/sys/kernel/random/uuid); trap 'echo $v >/new; mv /new /told' USR1; while :; do sleep 0.1; done"
_PYTHON = """
import os, signal, socket, threading
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
def value():
    return os.urandom(8).hex()
def answer(make):
    while True:
        signal.sigwait({signal.SIGUSR1})
        with open("/new", "w") as file:
            file.write(make())
        os.rename("/new", "/told")
"""
_ALONE = "mine = value()\nanswer(lambda: mine)\n"
_THREADS = """
asked, told, done = [threading.Event() for _ in range(8)], [], threading.Semaphore(0)
def work(asked):
    mine = value()
    while True:
        asked.wait()
        asked.clear()
        told.append(mine)
        done.release()
for each in asked:
    threading.Thread(target=work, args=(each,)).start()
def all_of_them():
    told.clear()
    for each in asked:
        each.set()
    for _ in asked:
        done.acquire()
    return " ".join(sorted(told))
answer(all_of_them)
"""
_CONNECTED = """
listener = socket.create_server(("127.0.0.1", 7777))
client = socket.create_connection(listener.getsockname())
server, peer = listener.accept()
listener.close()
mine = f"{value()} {peer[1]}"
def through_the_connection():
    client.sendall(mine.encode())
    return server.recv(100).decode()
answer(through_the_connection)
"""
_NGINX = (
    'echo "daemon off; user root; pid /tmp/nginx.pid; events {{}} http {{ access_log off; '
    "client_body_temp_path /tmp/1; proxy_temp_path /tmp/2; fastcgi_temp_path /tmp/3; uwsgi_temp_path /tmp/4; "
    "scgi_temp_path /tmp/5; "
    'server {{ listen {listen}; return 200 $(cat /proc/sys/kernel/random/uuid); }} }}" >/tmp/nginx.conf; '
    "exec /opt/nginx -e stderr -c /tmp/nginx.conf"
)
_GET = """
import socket
with socket.socket(socket.AF_UNIX) as one:
    one.connect("/tmp/nginx.sock")
    one.sendall(b"GET / HTTP/1.0\\r\\n\\r\\n")
    print(one.makefile().read().split()[-1])
"""
_RUN_ID = "info server | grep run_id"


def _python(code: str) -> tuple[str, ...]:
    return ("/opt/python3", "-IS", "-c", code)


def _sh(script: str) -> tuple[str, ...]:
    return ("sh", "-c", script)


@dataclass(frozen=True, slots=True)
class Program:
    """What a container runs, and the command in it that asks for the value."""

    name: str
    what: str  # for the table
    args: tuple[str, ...]
    ask: tuple[str, ...] = _sh(_ASK)
    tty: bool = False
    tcp: bool = False  # criu 4.1 refuses it on Linux 6.18, and 3.17 captures it on 6.1, which the guest has


PROGRAMS = (
    Program("shell", "a shell (busybox)", _sh(_SHELL)),
    Program("terminal", "the same with a terminal", _sh(_SHELL), tty=True),
    Program("python", "Python", _python(_PYTHON + _ALONE)),
    Program("threads", "Python with nine threads", _python(_PYTHON + _THREADS)),
    Program(
        "redis", "Redis at a Unix socket",
        ("/opt/redis-server", "--port", "0", "--unixsocket", "/tmp/redis.sock", "--save", ""),
        _sh(f"/opt/redis-cli -s /tmp/redis.sock {_RUN_ID}"),
    ),
    Program(
        "nginx", "nginx (master and worker) at a Unix socket", _sh(_NGINX.format(listen="unix:/tmp/nginx.sock")),
        _python(_GET),
    ),
    Program(
        "redis-tcp", "Redis at a TCP port",
        ("/opt/redis-server", "--port", "6379", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""),
        _sh(f"/opt/redis-cli {_RUN_ID}"), tcp=True,
    ),
    Program(
        "nginx-tcp", "nginx at a TCP port", _sh(_NGINX.format(listen="80")), _sh("wget -qO- http://127.0.0.1/"),
        tcp=True,
    ),
    Program(
        "connected", "an established TCP connection inside the pod (127.0.0.1)", _python(_PYTHON + _CONNECTED), tcp=True
    ),
)  # fmt: skip


def table() -> str:
    """The table of the documentation."""
    lines = ["| program | criu 4.1, Linux 6.18 | criu 3.17, Linux 6.1 |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {one.what} | {'no' if one.tcp else 'yes'} | yes |" for one in PROGRAMS)])


def unpacked() -> Path:
    """The root that tests/programs.sh unpacks."""
    script = Path(__file__).with_name("programs.sh")
    done = subprocess.run([script], check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    return Path(done.stdout.strip())


def image(root: Path) -> BuiltImage:
    """An image of busybox with the programs, as they are below `root`, in /opt, and their libraries."""
    files = {f"opt/{name}": path for name, path in BINARIES.items()}
    for path in BINARIES.values():
        files |= {library.lstrip("/"): library for library in _libraries(root, path)}
    programs = layer(*(_file(root, name, path) for name, path in sorted(files.items())), *_python_modules(root))
    return build_image([busybox_layer(), programs], compressed=False)


def _libraries(root: Path, program: str) -> Iterator[str]:
    loader = next(root.glob("lib64/ld-linux-*.so.*"), None) or next(root.glob("lib/ld-linux-*.so.*"))
    command = ["chroot", root, f"/{loader.relative_to(root)}", "--list", program]
    for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
        words = line.split()
        if words[0].startswith("/"):
            yield words[0]
        elif len(words) > 2 and words[2].startswith("/"):
            yield words[2]


def _file(root: Path, name: str, path: str) -> tuple[tarfile.TarInfo, bytes]:
    return entry(name, (root / path.lstrip("/")).read_bytes(), mode=0o755)


def _python_modules(root: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    for directory, below, names in os.walk(root / "usr/lib/python3.11"):
        below[:] = [one for one in below if one in ("collections", "encodings", "importlib", "re")]
        for name in sorted(names):
            path = Path(directory, name)
            file = path.resolve()  # Debian's sitecustomize.py leads to /etc, of this machine
            if path.suffix == ".py" and file.is_relative_to(root.resolve()):
                yield entry(path.relative_to(root).as_posix(), file.read_bytes())
