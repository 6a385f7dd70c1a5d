"""What operators write: names, quantities, mounts, ports, and the command line itself."""

from __future__ import annotations

import pytest

from cri.client.arguments import parser
from cri.client.attach import Detacher
from cri.client.errors import UnknownName, UsageError
from cri.client.lists import image_names
from cri.client.names import Candidate, resolve
from cri.client.portforward import Forward, parse_forward
from cri.client.render import age, parse_size, size
from cri.client.runplan import container_config, parse_port, parse_volume, pod_name, sandbox_config
from cri.v1 import api_pb2

CAFE = Candidate("container", "cafe01" + "0" * 58, ("web", "shop/web"), live=True)
BEEF = Candidate("container", "cab0" + "0" * 60, ("web", "blog/web"), live=False)
NAMED = Candidate("pod", "123456" + "0" * 58, ("cafe", "default/cafe"), live=True)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (CAFE.id, CAFE),
        ("cafe0", CAFE),
        ("cab", BEEF),
        ("cafe", NAMED),  # a name goes before the beginning of an id
        ("web", CAFE),  # of two of a name, the one that lives
        ("blog/web", BEEF),
    ],
)
def test_a_query_means_one_thing(query: str, found: Candidate) -> None:
    assert resolve(query, [CAFE, BEEF, NAMED]) is found


@pytest.mark.parametrize(
    ("query", "message"), [("ca", r"2 match: cafe01.*shop/web"), ("", "no object has"), ("x", "no object has")]
)
def test_what_means_nothing_or_too_much_is_refused(query: str, message: str) -> None:
    with pytest.raises(UnknownName, match=message):
        resolve(query, [CAFE, BEEF, NAMED])


def test_sizes_are_read_in_binary_and_written_in_decimal_units() -> None:
    assert [parse_size(text) for text in ("512", "1k", "64M", "1.5GiB", "2gb", "7b")] == [
        512, 1024, 64 << 20, 3 << 29, 2 << 30, 7,
    ]  # fmt: skip
    assert [size(count) for count in (0, 999, 1000, 5_240_000, 999_600)] == ["0B", "999B", "1kB", "5.24MB", "1MB"]
    for text in ("", "m", "1x", "-1", "1 m b"):
        with pytest.raises(UsageError, match="parse size"):
            parse_size(text)


def test_ages_are_in_their_largest_unit() -> None:
    now = 10**18
    ages = [age(now - seconds * 10**9, now) for seconds in (-5, 1, 59, 60, 3600 * 47, 86_400 * 10)]
    assert ages == ["0s", "1s", "59s", "1m", "1d", "10d"]
    assert age(0, now) == ""


def test_volumes() -> None:
    mount = parse_volume("/data:/srv:ro,rshared")
    assert (mount.host_path, mount.container_path, mount.readonly) == ("/data", "/srv", True)
    assert mount.propagation == api_pb2.PROPAGATION_BIDIRECTIONAL
    assert parse_volume("relative:/srv").host_path.startswith("/")
    for text in ("/data", "/data:srv", ":/srv", "/data:/srv:exec"):
        with pytest.raises(UsageError, match="mount"):
            parse_volume(text)


def test_ports() -> None:
    port = parse_port("[::1]:8080:80/udp")
    assert (port.host_ip, port.host_port, port.container_port, port.protocol) == ("::1", 8080, 80, api_pb2.UDP)
    assert parse_port("8080:80").host_ip == ""
    for text in ("80", "0:80", "80:", "8080:80/icmp", "8080:65536", "a:b"):
        with pytest.raises(UsageError, match="publish"):
            parse_port(text)


def test_a_run_becomes_a_pod_of_one_container() -> None:
    line = "run --name web -e A=b=c --memory 64m --cpus 0.5 -u 7:8 --host-network img --rm -- sh -c true"
    arguments = parser().parse_args(line.split())
    assert not arguments.rm  # it stands after the image: it is the command's
    pod = sandbox_config(arguments, "web", "uid")
    assert pod.linux.security_context.namespace_options.network == api_pb2.NODE
    container = container_config(arguments, "web", "sha256:1")
    assert list(container.args) == ["--rm", "--", "sh", "-c", "true"]
    assert [(variable.key, variable.value) for variable in container.envs] == [("A", b"b=c")]
    resources = container.linux.resources
    assert (resources.memory_limit_in_bytes, resources.cpu_quota, resources.cpu_period) == (64 << 20, 50_000, 100_000)
    security = container.linux.security_context
    assert (security.run_as_user.value, security.run_as_group.value) == (7, 8)
    with pytest.raises(UsageError, match="slash"):
        sandbox_config(arguments, "../../etc", "uid")


def test_pods_are_named_after_their_image() -> None:
    assert pod_name("registry.example:5000/team/My_App:1.2@sha256:00", "a1") == "my-app-a1"
    assert pod_name("@", "a1") == "run-a1"


def test_images_are_listed_by_each_of_their_names() -> None:
    assert image_names(["host:5000/app:1", "app:2"], []) == [("host:5000/app", "1"), ("app", "2")]
    assert image_names([], ["host:5000/app@sha256:00"]) == [("host:5000/app", "<none>")]
    assert image_names([], []) == [("<none>", "<none>")]


def test_general_options_stand_on_either_side_of_the_command() -> None:
    assert parser().parse_args(["-o", "json", "ps"]).output == "json"
    assert parser().parse_args(["ps", "-o", "yaml", "-r", "unix:///x"]).output == "yaml"
    arguments = parser().parse_args(["--timeout", "3", "exec", "--timeout", "9", "web", "--", "ls", "-l"])
    assert (arguments.timeout, arguments.exec_timeout, arguments.command_line[-2:]) == (3.0, 9, ["ls", "-l"])


@pytest.mark.parametrize(("line", "status"), [("exec", 125), ("run", 125), ("logs", 2)])
def test_a_usage_error_of_run_and_exec_is_no_status_of_a_process(line: str, status: int) -> None:
    with pytest.raises(SystemExit) as exit_of:
        parser().parse_args(line.split())
    assert exit_of.value.code == status


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ([b"ls\n"], [b"ls\n"]),
        ([b"\x10", b"\x11"], [b"", None]),
        ([b"a\x10\x11b"], [None]),
        ([b"a\x10", b"b"], [b"a", b"\x10b"]),
        ([b"\x10\x10", b"\x11"], [b"\x10", None]),
    ],
)
def test_two_keys_leave_an_attached_terminal(typed: list[bytes], sent: list[bytes | None]) -> None:
    detacher = Detacher()
    assert [detacher(keys) for keys in typed] == sent


def test_ports_to_forward() -> None:
    assert parse_forward("80") == Forward(80, 80)
    assert parse_forward("8080:80") == Forward(8080, 80)
    assert parse_forward(":80") == Forward(0, 80)
    for text in ("0", "80:", "http", "80:65536", "-1:80", "1:2:3"):
        with pytest.raises(UsageError, match=f"port-forward {text}"):
            parse_forward(text)
