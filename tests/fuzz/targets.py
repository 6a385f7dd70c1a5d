"""The table of targets: for each parser a function of bytes, the errors that it may raise, and inputs to begin with."""

from __future__ import annotations

import asyncio
import atexit
import functools
import itertools
import json
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from cri.client.migrate import bolt
from cri.convert.container import container_config
from cri.convert.sandbox import sandbox_config
from cri.daemon.loading import load as load_configuration
from cri.errors import ConfigurationError
from cri.nri.adjust import Adjustments
from cri.nri.errors import NriError, WireError
from cri.nri.resources import Updates
from cri.nri.v1alpha1 import api_pb2 as nri
from cri.nri.v1alpha1 import ttrpc_pb2
from cri.nri.wire import FrameReader, Kind, Message, MessageReader, encode_frames, encode_message
from cri.streaming import spdy
from cri.streaming.errors import ProtocolViolation
from cri.v1 import api_pb2 as cri
from image.configuration import parse_configuration
from image.erofs.check import check
from image.erofs.index import Index
from image.erofs.layout import Malformed
from image.errors import AuthenticationRequired, InvalidConfiguration, InvalidImage, InvalidReference, RegistryBlocked
from image.manifest import parse_manifest
from image.reference import Reference, parse_reference, short_name
from image.registry import authfile, registries_conf
from image.registry.auth import parse_challenges, parse_token
from image.trust import registries_d, signatures
from image.trust.policy import load_policy
from image.unpack.tar import ByteStream, TarReader
from image.unpack.tar_header import TarError
from network.conflist import parse_conf, parse_conflist
from network.errors import InvalidConfiguration as InvalidNetwork
from network.result import parse_error, parse_result
from pods.errors import FailedPrecondition, InvalidArgument, Unimplemented
from pods.host import HostFacts
from pods.oci import cdi, hook_files
from pods.recorder import entry as recorder_entry
from pods.security.capabilities import DEFAULT
from pods.security.seccomp_profile import parse_profile, reduce_profile
from runtime.client import ShimClient
from runtime.criu import pids
from runtime.errors import RuntimeCoreError, SpecError
from runtime.process import users
from runtime.spec.parse import parse as parse_spec
from runtime.wire import calls, frames, reports
from runtime.wire.frames import Decoder, ProtocolError
from tests.fuzz.mutator import LARGEST
from tests.images import entry, layer

_DIGEST = "sha256:" + "a" * 64
_HOST = HostFacts(
    cgroup_v2=True, swap_limit=True, capabilities=DEFAULT, kernel=(6, 1), architecture="amd64", hostname="node"
)

_SLOW = 4096  # bytes: Python's YAML takes a millisecond for some ten


@dataclass(frozen=True)
class Target:
    """A parser. Each of `seeds()` is read without an error."""

    name: str
    run: Callable[[bytes], object]
    errors: tuple[type[BaseException], ...]
    seeds: Callable[[], Sequence[bytes]]
    largest: int = LARGEST  # bytes of an input


@functools.cache
def _scratch() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="crisp-fuzz-"))
    atexit.register(shutil.rmtree, directory)
    return directory


def _file(name: str, data: bytes) -> Path:
    path = _scratch() / name
    path.write_bytes(data)
    return path


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _json(*documents: object) -> Callable[[], list[bytes]]:
    return lambda: [json.dumps(document).encode() for document in documents]


def _given(*texts: str) -> Callable[[], list[bytes]]:
    return lambda: [text.encode() for text in texts]


# -- images ------------------------------------------------------------------------------------------------------------


def _reference(data: bytes) -> None:
    reference = parse_reference(_text(data))
    assert parse_reference(str(reference)) == reference
    short_name(_text(data))


def _registries(data: bytes) -> None:
    found = registries_conf.load(_file("registries.conf", data))
    for name in ("busybox", "a.io/b/c:1"):
        for reference in found.to_pull(name):
            found.endpoints(reference)


def _lookaside(data: bytes) -> None:
    directory = _scratch() / "registries.d"
    directory.mkdir(exist_ok=True)
    (directory / "a.yaml").write_bytes(data)
    registries_d.lookaside(directory, Reference("a.io", "b", "1"))


def _login(data: bytes) -> None:
    found = authfile._read(_file("auth.json", data))
    for one in found.auths.values():
        one.credentials()


def _public_key(data: bytes) -> None:
    signatures._made_by(data, signatures.Signature(signatures.SIGSTORE, b"claim", b"signature"))


def _public_keys() -> list[bytes]:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    # Always the same keys, so that a run can be repeated.
    keys = (ec.derive_private_key(7, ec.SECP256R1()), ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)))
    pem = [key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for key in keys]
    return [pem[0]]  # an Ed25519 key that made no signature of this length is refused as well


def _tar(data: bytes) -> None:
    size = 1 + len(data) % 700
    reader = TarReader(ByteStream(data[at : at + size] for at in range(0, len(data), size)))
    for item in reader:
        for _offset, length in item.segments or ():
            for _piece in reader.content(length):
                pass


def _tars() -> list[bytes]:
    many = layer(entry("a", b"x" * 700), entry("d/"), entry("b" * 120, b"y", mtime=1.5, xattrs={"user.k": "v"}))
    return [many, layer(entry("a"))]


@functools.cache
def _tree() -> tuple[bytes, int]:
    """A sound index, and the open tar that it is of."""
    place = _scratch() / "tree"
    for name in ("d/e", "many"):
        (place / name).mkdir(parents=True)
    for number in range(40):
        (place / "many" / f"{'n' * (number % 30)}{number}").touch()
    tar, index = os.memfd_create("tar"), os.memfd_create("index")
    os.ftruncate(tar, 20_000)
    writer = Index(index)
    with (place / "plain").open("wb") as file:
        file.truncate(700)
        writer.place(os.fstat(file.fileno()).st_ino, 512, 700)
    (place / "short").symlink_to("t" * 100)
    (place / "long").symlink_to("t" * 600)
    os.link(place / "plain", place / "d/again")
    os.mkfifo(place / "pipe")
    _write(writer, place, tar)
    content = os.pread(index, os.fstat(index).st_size, 0)
    os.close(index)
    return content, tar


def _write(writer: Index, place: Path, tar: int) -> None:
    root, here = os.open(place, os.O_RDONLY | os.O_DIRECTORY), os.getcwd()
    try:
        writer.write(root, tar)  # changes the working directory
    finally:
        os.chdir(here)
        os.close(root)


def _index(data: bytes) -> None:
    index = os.memfd_create("index")
    try:
        os.write(index, data)
        check(index, _tree()[1])
    finally:
        os.close(index)


def _index_writer(data: bytes) -> None:
    """The bytes are names and kinds of a tree, whose index must pass the check."""
    place = _scratch() / "written"
    place.mkdir()
    index = os.memfd_create("index")
    try:
        writer, tar = Index(index), _tree()[1]
        at = [os.fsencode(place)]
        for part in data.split(b"/")[:60]:
            kind, name = part[:1], part[1:200].replace(b"\0", b"0")
            path = os.path.join(at[-1], name)
            if not name or name in (b".", b"..") or os.path.lexists(path):
                continue
            if kind == b"d":
                os.mkdir(path)
                at.append(path)
            elif kind == b"u":
                at = at[:-1] or at
            elif kind == b"l":
                os.symlink(name * (1 + len(name) % 9), path)
            elif kind == b"p":
                os.mkfifo(path)
            else:
                with open(path, "wb") as file:
                    size = len(name) * 37
                    file.truncate(size)
                    writer.place(os.fstat(file.fileno()).st_ino, 512 * (len(part) % 9), size)
        _write(writer, place, tar)
        check(index, tar)
    finally:
        os.close(index)
        shutil.rmtree(place)


# -- pods --------------------------------------------------------------------------------------------------------------


def _profile(data: bytes) -> None:
    reduce_profile(parse_profile("p.json", data, "seccomp"), DEFAULT, _HOST)


def _cdi(name: str) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        try:
            spec = cdi._read(_file(name, data))
        except ValueError:  # what its caller tells
            return
        cdi._merged([(spec, edits, "devices") for edits in (spec.edits, *spec.devices.values())])

    return run


_CDI = {
    "cdiVersion": "0.6.0",
    "kind": "a.io/b",
    "devices": [{"name": "x", "containerEdits": {"env": ["A=b"], "deviceNodes": [{"path": "/dev/null"}]}}],
    "containerEdits": {
        "mounts": [{"hostPath": "/a", "containerPath": "/b", "options": ["ro"]}],
        "additionalGids": [4],
        "hooks": [{"hookName": "createRuntime", "path": "/h", "args": ["a"]}],
    },
}
_HOOK = {
    "version": "1.0.0",
    "hook": {"path": "/h", "args": ["h"]},
    "when": {"annotations": {"^a": "b"}},
    "stages": ["poststop"],
}


def _spec(data: bytes) -> None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise SpecError("", str(error)) from error
    parse_spec(document)


_SPEC = {
    "ociVersion": "1.2.0",
    "root": {"path": "r", "readonly": True},
    "hostname": "h",
    "process": {
        "args": ["a"],
        "cwd": "/",
        "env": ["A=b"],
        "user": {"uid": 1, "gid": 2, "additionalGids": [3]},
        "capabilities": {"bounding": ["CAP_KILL"]},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}],
    },
    "mounts": [{"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]}],
    "hooks": {"poststop": [{"path": "/h", "timeout": 1}]},
    "annotations": {"a": "b"},
    "linux": {
        "namespaces": [{"type": "pid"}, {"type": "network", "path": "/n"}],
        "maskedPaths": ["/m"],
        "sysctl": {"net.a": "1"},
        "devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 3}],
        "resources": {
            "memory": {"limit": 1},
            "cpu": {"shares": 2, "cpus": "0-1"},
            "pids": {"limit": 3},
            "unified": {"memory.high": "1"},
            "devices": [{"allow": False, "access": "rwm"}],
            "hugepageLimits": [{"pageSize": "2MB", "limit": 1}],
        },
        "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["kill"], "action": "SCMP_ACT_ERRNO"}]},
    },
}


def _users(data: bytes) -> None:
    etc = _scratch() / "root" / "etc"
    etc.mkdir(parents=True, exist_ok=True)
    (etc / "passwd").write_bytes(data)
    (etc / "group").write_bytes(data)
    root = os.open(etc.parent, os.O_PATH)
    try:
        users.resolve(root, "root:root", None, (), merge=True)
    finally:
        os.close(root)


def _run_pod(data: bytes) -> None:
    sandbox_config("config", cri.RunPodSandboxRequest.FromString(data).config)


def _pods() -> list[bytes]:
    config = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name="a", namespace="b", uid="c"),
        hostname="h",
        log_directory="/l",
        labels={"a": "b"},
        annotations={"c": "d"},
        dns_config=cri.DNSConfig(servers=["10.0.0.1"]),
        port_mappings=[cri.PortMapping(container_port=80, host_port=80)],
        linux=cri.LinuxPodSandboxConfig(cgroup_parent="/kubepods", sysctls={"net.ipv4.ip_forward": "1"}),
    )
    return [cri.RunPodSandboxRequest(config=config, runtime_handler="r").SerializeToString()]


def _create(data: bytes) -> None:
    container_config("config", cri.CreateContainerRequest.FromString(data).config)


def _containers() -> list[bytes]:
    config = cri.ContainerConfig(
        metadata=cri.ContainerMetadata(name="a"),
        image=cri.ImageSpec(image="i"),
        command=["a"],
        args=["b"],
        envs=[cri.KeyValue(key="A", value=b"b")],
        mounts=[cri.Mount(container_path="/c", host_path="/h")],
        devices=[cri.Device(container_path="/dev/x", host_path="/dev/null", permissions="r")],
        log_path="a.log",
        linux=cri.LinuxContainerConfig(resources=cri.LinuxContainerResources(cpu_shares=2, cpuset_cpus="0-1")),
    )
    return [cri.CreateContainerRequest(pod_sandbox_id="p", config=config).SerializeToString()]


# -- wires -------------------------------------------------------------------------------------------------------------


def _spdy(client: bool) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        end = spdy.Connection(client=client)
        if client:
            end.open({"streamtype": "data"})
        size = 1 + len(data) % 300
        for at in range(0, len(data), size):
            end.receive(data[at : at + size])
            end.take()

    return run


def _spdy_seeds(client: bool) -> Callable[[], list[bytes]]:
    def seeds() -> list[bytes]:
        ours, theirs = spdy.Connection(client=client), spdy.Connection(client=not client)
        stream = (ours if client else theirs).open({"streamtype": "data", "port": "80"})
        for piece in ours.take() if client else theirs.take():
            (theirs if client else ours).receive(piece)
        theirs.reply(stream, {"a": "b"})
        theirs.send(stream, b"data")
        theirs.ping()
        theirs.end(stream)
        theirs.go_away()
        first = b"".join(bytes(piece) for piece in theirs.take())
        return [first] if client else _spoken()

    return seeds


def _spoken() -> list[bytes]:
    end = spdy.Connection(client=True)
    stream = end.open({"streamtype": "error", "port": "80", "requestid": "0"})
    end.send(stream, b"some input")
    end.ping()
    end.end(stream)
    end.reset(end.open({"streamtype": "data"}))
    end.go_away()
    return [b"".join(bytes(piece) for piece in end.take())]


def _session(data: bytes) -> None:
    """A session of the streaming server. The first byte says which request the client has a token for."""
    from tests.unit.test_streaming_server import in_memory, recordings

    async def talk() -> None:
        request = recordings()[data[0] % 7 if data else 0].request
        async with in_memory() as memory:
            client, size = memory.client(request), 1 + len(data) % 500
            for at in range(1, len(data), size):
                client.send(data[at : at + size])
                await asyncio.sleep(0)
            client.transport.lose()

    asyncio.run(talk())


def _sessions() -> list[bytes]:
    from tests.unit.test_streaming_server import recordings

    return [bytes([number]) + b"".join(recording.pieces) for number, recording in enumerate(recordings())]


def _shim_calls(data: bytes) -> None:
    """As a shim reads them, which answers what a handler cannot take."""
    decoder = Decoder()
    decoder.feed(data, ())
    for message, _fds in decoder.messages():
        kind = calls.CALLS.get(name) if isinstance(name := message.get("call"), str) else None
        if kind is not None:
            try:
                kind.from_json(message)
            except Exception:
                continue


def _shim_call_seeds() -> list[bytes]:
    said: list[Any] = [calls.Sync(), calls.Delete("c"), calls.Signal("c", 9), calls.Exec("c", "e", ("true",))]
    return [b"".join(frames.encode({"id": 1, "call": one.call, **one.to_json()}) for one in said)]


def _shim_answers(data: bytes) -> None:
    """As crispd reads what a shim says; a message that is none ends the connection."""

    async def listen() -> None:
        trouble: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: trouble.append(context))
        ours, shim = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        lost = asyncio.Event()
        client = ShimClient(ours, lambda _event: None, lost.set)
        asked = [client.begin(calls.GetState()), client.begin(calls.Delete("c")), client.begin(calls.WaitStart("c"))]
        shim.setblocking(False)
        await asyncio.get_running_loop().sock_sendall(shim, data)
        shim.close()
        await asyncio.wait_for(lost.wait(), 60)
        client.close()
        for _round in range(5):
            await asyncio.sleep(0)
        if trouble:
            raise trouble[0].get("exception") or AssertionError(trouble[0]["message"])
        assert all(future.done() and (future.exception() or True) for future in asked)

    asyncio.run(listen())


def _shim_answer_seeds() -> list[bytes]:
    status = calls.ContainerStatus(state="running", pid=7, started_at=3)
    exited = calls.Exited("c", calls.ExitStatus(1))
    said = [{"id": 2, "ok": {}}, {"id": 3, "ok": status.to_json()}, {"event": exited.event, **exited.to_json()}]
    failed = {"id": 1, "error": {"error": "SpecError", "path": "a", "reason": "b"}}
    return [b"".join(map(frames.encode, [*said, failed]))]


def _reports(data: bytes) -> None:
    report = reports.decode(data)
    assert report is None or isinstance(report, reports.Report)


def _nri_wire(data: bytes) -> None:
    reader, readers = FrameReader(), {channel: MessageReader() for channel in (1, 2)}
    size = 1 + len(data) % 90
    for at in range(0, len(data), size):
        for channel, payload in reader.feed(data[at : at + size]):
            for message in readers[1 + channel % 2].feed(payload):
                ttrpc_pb2.Request.FromString(message.payload)


def _nri_adjust(data: bytes) -> None:
    adjustments = Adjustments({"process": {"args": ["sh"], "env": ["A=1"]}, "linux": {}, "mounts": []})
    adjustments.apply("01-fuzz", nri.ContainerAdjustment.FromString(data))
    document = adjustments.document
    document["process"] |= {"cwd": "/", "user": {"uid": 0, "gid": 0}}
    parse_spec({"ociVersion": "1.2.0", "root": {"path": "r"}, **document})


def _nri_adjustments() -> list[bytes]:
    linux = nri.LinuxContainerAdjustment(
        devices=[nri.LinuxDevice(path="/dev/x", type="c", major=1, minor=3)],
        sysctl={"net.a": "1"},
        resources=nri.LinuxResources(cpu=nri.LinuxCPU(cpus="0-1"), unified={"memory.high": "1"}),
        seccomp_policy=nri.LinuxSeccomp(default_action="SCMP_ACT_ALLOW"),
    )
    wanted = nri.ContainerAdjustment(
        annotations={"a": "b"},
        env=[nri.KeyValue(key="A", value="b")],
        args=["a"],
        linux=linux,
        mounts=[nri.Mount(destination="/a", source="/s", type="bind")],
        hooks=nri.Hooks(prestart=[nri.Hook(path="/h")]),
    )
    return [wanted.SerializeToString()]


def _nri_update(data: bytes) -> None:
    Updates().add("01-fuzz", list(nri.UpdateContainersRequest.FromString(data).update), [])


def _nri_updates() -> list[bytes]:
    resources = nri.LinuxResources(memory=nri.LinuxMemory(limit={"value": 9}), cpu=nri.LinuxCPU(cpus="0-1"))
    update = nri.ContainerUpdate(container_id="c", linux=nri.LinuxContainerUpdate(resources=resources))
    return [nri.UpdateContainersRequest(update=[update]).SerializeToString()]


def _nri_said() -> list[bytes]:
    request = ttrpc_pb2.Request(service="s", method="m", payload=b"p")
    message = encode_message(Message(1, Kind.REQUEST, request.SerializeToString()))
    return [encode_frames(1, message) + encode_frames(2, message)]


# -- others ------------------------------------------------------------------------------------------------------------


def _bolt(data: bytes) -> None:
    left = 3000  # of entries: buckets may be in each other, and deeper than anybody looks

    def walk(bucket: bolt.Bucket, depth: int) -> None:
        nonlocal left
        for _entry in itertools.islice(bucket.values(), max(0, left)):
            left -= 1
        for _key, inner in itertools.islice(bucket.buckets(), max(0, left)):
            left -= 1
            if left > 0 and depth < 3:
                walk(inner, depth + 1)

    walk(bolt.open_database(data), 0)


def _bolts() -> list[bytes]:
    """A database of four pages of 512 bytes: two metas, a branch, a leaf."""
    size = 512
    meta = struct.pack("<IIIIQQQQQ", 0xED0CDAED, 2, size, 0, 2, 0, 9, 4, 1)
    metas = [struct.pack("<QHHI", number, 4, 0, 0) + meta + struct.pack("<Q", bolt._fnv(meta)) for number in (0, 1)]
    branch = struct.pack("<QHHI", 2, 1, 1, 0) + struct.pack("<IIQ", 16, 1, 3) + b"k"
    leaf = struct.pack("<QHHI", 3, 2, 1, 0) + struct.pack("<IIII", 0, 16, 1, 1) + b"kv"
    return [b"".join(page.ljust(size, b"\0") for page in (*metas, branch, leaf))]


def _result(data: bytes) -> None:
    parse_error(data)
    parse_result(data, "1.0.0", "eth0")


def _criu_images() -> list[bytes]:
    message = b"\x08\x01\x10\x00\x18\x01\x20\x01\x28\x01"
    return [bytes(8) + struct.pack("<I", len(message)) + message]


_MANIFEST = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.manifest.v1+json",
    "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": _DIGEST, "size": 3},
    "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": _DIGEST, "size": 3}],
}
_INDEX = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.oci.image.index.v1+json",
    "manifests": [{"mediaType": _MANIFEST["mediaType"], "digest": _DIGEST, "size": 3, "platform": {"os": "linux"}}],
}
_CONFIGURATION = {
    "architecture": "amd64",
    "os": "linux",
    "created": "2026-01-02T03:04:05.6Z",
    "rootfs": {"type": "layers", "diff_ids": [_DIGEST]},
    "config": {"User": "a", "Env": ["A=b"], "Cmd": ["a"], "Volumes": {"/v": {}}, "Labels": {"a": "b"}},
}
_REGISTRIES = """unqualified-search-registries = ["a.io"]
short-name-mode = "enforcing"
[aliases]
"b" = "a.io/b"
[[registry]]
prefix = "a.io/b"
location = "c.io/d"
[[registry.mirror]]
location = "m.io"
pull-from-mirror = "tag-only"
"""
_CRISP = 'listen = "unix:///run/x.sock"\ncgroup_driver = "cgroupfs"\ncontainer_log_limit = 5\n'
_POLICY = {"default": [{"type": "reject"}], "transports": {"docker": {"a.io": [{"type": "insecureAcceptAnything"}]}}}
_NETWORK = {"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "bridge", "capabilities": {"portMappings": True}}]}
_PLUGIN = {"cniVersion": "1.0.0", "name": "n", "type": "bridge"}
_ADDRESSES = {
    "cniVersion": "1.0.0",
    "interfaces": [{"name": "eth0", "sandbox": "/n"}],
    "ips": [{"address": "10.0.0.2/24", "interface": 0}],
}
_SECCOMP = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
    "syscalls": [
        {"names": ["kill"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]}
    ],
}

TARGETS: tuple[Target, ...] = (
    Target("reference", _reference, (InvalidReference,), _given("busybox", "a.io:5/b/c:t@" + _DIGEST)),
    Target("manifest", lambda data: parse_manifest(data, "", "x"), (InvalidImage,), _json(_MANIFEST, _INDEX)),
    Target("configuration", lambda data: parse_configuration(data, "x"), (InvalidImage,), _json(_CONFIGURATION)),
    Target(
        "challenge", lambda data: parse_challenges(_text(data)), (), _given('Bearer realm="https://a/b",service="c"')
    ),
    Target("token", lambda data: parse_token(data, "r"), (AuthenticationRequired,), _json({"token": "a"})),
    Target(
        "login",
        _login,
        (AuthenticationRequired,),
        _json({"auths": {"a.io": {"auth": "YTpi"}}, "credHelpers": {"b": "c"}}),
    ),
    Target(
        "login-helper",
        lambda data: authfile._answer(data, 0, "x"),
        (AuthenticationRequired,),
        _json({"Username": "a", "Secret": "b"}),
    ),
    Target(
        "registries.conf", _registries, (InvalidConfiguration, InvalidReference, RegistryBlocked), _given(_REGISTRIES)
    ),
    Target(
        "registries.d",
        _lookaside,
        (InvalidConfiguration,),
        _given("docker:\n  a.io:\n    lookaside: file:///x\n"),
        _SLOW,
    ),
    Target("policy", lambda data: load_policy(_file("policy.json", data)), (InvalidConfiguration,), _json(_POLICY)),
    Target("public-key", _public_key, (InvalidConfiguration,), _public_keys),
    Target(
        "gpg-key",
        signatures._dearmoured,
        (InvalidConfiguration,),
        _given("-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nYWJj\n=abcd\n-----END PGP PUBLIC KEY BLOCK-----\n"),
    ),
    Target("tar", _tar, (TarError,), _tars),
    Target("erofs-check", _index, (Malformed,), lambda: [_tree()[0]]),
    Target("erofs-write", _index_writer, (), _given("dabc/ffile/llink/u/ppipe/dx/fy")),
    Target(
        "crisp.toml",
        lambda data: load_configuration(path=_file("crisp.toml", data)),
        (ConfigurationError,),
        _given(_CRISP),
    ),
    Target("cni-list", lambda data: parse_conflist(data, "x"), (InvalidNetwork,), _json(_NETWORK)),
    Target("cni-conf", lambda data: parse_conf(data, "x"), (InvalidNetwork,), _json(_PLUGIN)),
    Target("cni-result", _result, (ValueError,), _json(_ADDRESSES)),
    Target("config.json", _spec, (SpecError,), _json(_SPEC)),
    Target("seccomp", _profile, (InvalidArgument, Unimplemented), _json(_SECCOMP)),
    Target("cdi.json", _cdi("cdi.json"), (InvalidArgument, Unimplemented), _json(_CDI)),
    Target(
        "cdi.yaml",
        _cdi("cdi.yaml"),
        (InvalidArgument, Unimplemented),
        _given("kind: a.io/b\ndevices:\n- name: x\n"),
        _SLOW,
    ),
    Target("hook", lambda data: hook_files._read(_file("hook.json", data)), (FailedPrecondition,), _json(_HOOK)),
    Target("users", _users, (RuntimeCoreError,), _given("root:x:0:0:r:/root:/bin/sh\nroot:x:0:root\n")),
    Target("cri-pod", _run_pod, (DecodeError, InvalidArgument, Unimplemented), _pods),
    Target("cri-container", _create, (DecodeError, InvalidArgument, Unimplemented), _containers),
    Target("spdy-server", _spdy(client=False), (ProtocolViolation,), _spdy_seeds(client=False)),
    Target("spdy-client", _spdy(client=True), (ProtocolViolation,), _spdy_seeds(client=True)),
    Target("session", _session, (), _sessions),
    Target("shim-calls", _shim_calls, (ProtocolError,), _shim_call_seeds),
    Target("shim-answers", _shim_answers, (), _shim_answer_seeds),
    Target("reports", _reports, (), _json({"warning": "a"}, {"executing": [["a", 1]]}, {"failed": {"error": "x"}})),
    Target("nri-wire", _nri_wire, (WireError, DecodeError), _nri_said),
    Target("nri-adjust", _nri_adjust, (DecodeError, NriError, SpecError), _nri_adjustments),
    Target("nri-update", _nri_update, (DecodeError, NriError), _nri_updates),
    Target("criu-image", pids.highest, (RuntimeCoreError,), _criu_images),
    Target("recorder", recorder_entry.decode, (), _json(["said", "a"], ["life", 1, "b"])),
    Target("bolt", _bolt, (bolt.Damaged,), _bolts),
)
