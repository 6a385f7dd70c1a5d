"""Reading configurations, results and annotations: what is accepted, what is refused, and by which error."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from network.capability import capability_args, parse_quantity
from network.conflist import MAX_CONFIGURATION, VERSIONS, parse_conf, parse_conflist, read_conf_dir
from network.errors import InvalidAttachment, InvalidConfiguration
from network.invocation import attachment_verb, cni_args
from network.model import Attachment
from network.result import parse_error, parse_result

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
NAMES = st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,20}", fullmatch=True)


def attachment(**fields: Any) -> Attachment:
    pod = {"sandbox_id": "s1", "netns": "", "pod_name": "p", "pod_namespace": "n", "pod_uid": "u"}
    return Attachment(**{**pod, **fields})


def conflist(**fields: Any) -> bytes:
    return json.dumps({"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge"}], **fields}).encode()


@pytest.mark.trial("null-is-missing", "null is taken for a member that is missing, as Go's programs take it")
def test_nulls_of_plugins_and_configurations_are_what_is_missing() -> None:
    nothing = dict.fromkeys(("cniVersions", "disableCheck", "disableGC", "args", "loadOnlyInlinedPlugins"))
    plugin = {"type": "bridge", "ipam": None, "dns": None, "capabilities": {"portMappings": True, "dns": None}}
    read = parse_conflist(conflist(**nothing, plugins=[plugin, {"type": "x", "capabilities": None}]), "x")
    assert (read.version, read.disable_check, read.disable_gc) == ("1.0.0", False, False)
    assert [one.capabilities for one in read.plugins] == [{"portMappings"}, frozenset()]
    assert read.plugins[0].config == plugin  # it is the plugin's to read
    assert parse_conflist(read.raw, "x") == read
    assert parse_conflist(conflist(cniVersion=None, cniVersions=[None, "1.0.0"]), "x").version == "1.0.0"
    assert parse_conf(b'{"type": "x", "name": "n", "cniVersion": null, "capabilities": null}', "x").version == "0.1.0"
    for missing in ({"name": None}, {"plugins": None}, {"plugins": [None]}, {"plugins": [{"type": None}]}):
        with pytest.raises(InvalidConfiguration):
            parse_conflist(conflist(**missing), "x")
    printed = {
        "cniVersion": None, "interfaces": [{"name": "eth0", "mac": None, "sandbox": None}, {"name": None}],
        "ips": [{"address": "10.0.0.2/24", "gateway": None, "interface": None}], "routes": None, "dns": None,
    }  # fmt: skip
    result = parse_result(json.dumps(printed).encode(), "1.0.0", "eth0")
    assert (result.ips, result.raw["cniVersion"]) == (("10.0.0.2",), "1.0.0")
    for empty in ({"ips": None, "interfaces": None}, {"ip4": None, "ip6": None}, {}):
        assert parse_result(json.dumps(empty).encode(), "1.0.0", "eth0").ips == ()
    error = parse_error(b'{"cniVersion": null, "code": 11, "msg": "later", "details": null}')
    assert error is not None
    assert (error.code, error.msg, error.details) == (11, "later", "")
    assert parse_error(b'{"code": null, "msg": null}') is None


@given(
    name=NAMES,
    version=st.sampled_from(VERSIONS),
    plugins=st.lists(st.fixed_dictionaries({"type": NAMES}, optional={"extra": JSON}), min_size=1, max_size=4),
    check=st.sampled_from([True, False, "true", "False"]),
)
def test_valid_list_is_read_and_read_again_from_its_raw_form(
    name: str, version: str, plugins: list[dict[str, Any]], check: bool | str
) -> None:
    raw = json.dumps({"cniVersion": version, "name": name, "plugins": plugins, "disableCheck": check, "other": 1})
    read = parse_conflist(raw.encode(), "x")
    assert (read.name, read.version) == (name, version)
    assert [plugin.config for plugin in read.plugins] == plugins
    assert read.disable_check == (check in (True, "true"))
    assert parse_conflist(read.raw, "x") == read
    single = parse_conf(json.dumps({"cniVersion": version, "name": name, **plugins[0]}).encode(), "x")
    assert parse_conflist(single.raw, "x") == single


@given(st.binary(max_size=200) | JSON.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_refused_with_the_rooms_own_errors(raw: bytes) -> None:
    for parse in (parse_conflist, parse_conf):
        with pytest.raises(InvalidConfiguration, match="x"):
            parse(raw, "x")
    parse_error(raw)
    with contextlib.suppress(ValueError):
        parse_result(raw, "1.0.0", "eth0")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"name": "../net"}, 'invalid network name "../net"'),
        ({"name": 7}, "Expected `str`"),
        ({"plugins": []}, "no plugins"),
        ({"plugins": [{"type": "bridge"}, {"name": "x"}]}, "plugin 1: .*`type`"),
        ({"plugins": [{"type": "../../bin/sh"}]}, 'invalid plugin type "../../bin/sh"'),
        ({"plugins": [{"type": ".."}]}, "invalid plugin type"),
        ({"cniVersion": "9.9.9"}, 'unknown cniVersion "9.9.9"'),
        ({"disableGC": "perhaps"}, "disableGC"),
    ],
)
def test_what_is_wrong_with_a_list_is_named(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidConfiguration, match=f"^parse there.*{reason}"):
        parse_conflist(conflist(**fields), "there")


def test_nesting_cannot_overflow_the_parser() -> None:
    bomb = b"[" * (MAX_CONFIGURATION // 2)
    with pytest.raises(InvalidConfiguration):
        parse_conflist(bomb, "x")
    with pytest.raises(ValueError, match="invalid result"):
        parse_result(b'{"a":' * 100_000, "1.0.0", "eth0")


def test_highest_version_that_is_spoken_is_chosen() -> None:
    assert parse_conflist(conflist(cniVersion="0.4.0", cniVersions=["1.0.0", "1.1.0", "2.0.0"]), "x").version == "1.1.0"
    assert parse_conf(b'{"name":"n","type":"t"}', "x").version == "0.1.0"


def test_first_valid_file_wins_and_the_others_are_explained(tmp_path: Path) -> None:
    assert read_conf_dir(tmp_path / "absent") == (None, [])
    (tmp_path / "00-readme.txt").write_text("{")
    (tmp_path / "10-broken.conflist").write_text("{")
    (tmp_path / "11-list.conf").write_bytes(conflist())
    (tmp_path / "12-large.json").write_bytes(b" " * (MAX_CONFIGURATION + 1))
    os.mkfifo(tmp_path / "13-fifo.conf")
    (tmp_path / "14-gone.conf").symlink_to("nowhere")
    (tmp_path / "20-good.json").write_text('{"cniVersion":"0.4.0","name":"good","type":"ptp","mtu":9000}')
    (tmp_path / "30-late.conflist").write_bytes(conflist(name="late"))
    found, problems = read_conf_dir(tmp_path)
    assert found is not None
    assert (found.name, found.plugins[0].config["mtu"], found.source) == ("good", 9000, f"{tmp_path}/20-good.json")
    assert [next(name for name in problem.split("/") if name[0] == "1")[:2] for problem in problems] == [
        "10", "11", "12", "13", "14",
    ]  # fmt: skip


@given(st.lists(st.ip_addresses(), max_size=5), st.sampled_from(VERSIONS[2:]))
def test_addresses_come_without_prefix_in_order_and_once(addresses: list[Any], version: str) -> None:
    printed = [{"address": f"{address}/{address.max_prefixlen // 2}", "interface": 1} for address in addresses]
    interfaces = [{"name": "cni0", "mac": "x"}, {"name": "eth0", "sandbox": "/run/netns/x"}]
    raw = {"cniVersion": version, "interfaces": interfaces, "ips": printed, "dns": {}}
    result = parse_result(json.dumps(raw).encode(), version, "eth0")
    assert result.raw == raw
    assert [ipaddress.ip_address(ip) for ip in result.ips] == list(dict.fromkeys(addresses))


def test_results_of_every_age_are_understood() -> None:
    legacy = b'{"ip4":{"ip":"10.0.0.2/24","gateway":"10.0.0.1"},"ip6":{"ip":"fd00::2/64"},"dns":{}}'
    result = parse_result(legacy, "0.2.0", "eth0")
    assert result.ips == ("10.0.0.2", "fd00::2")
    assert result.raw["cniVersion"] == "0.2.0"
    assert parse_result(b'{"cniVersion":"1.0.0","ips":null}', "1.0.0", "eth0").ips == ()
    host = b'{"interfaces":[{"name":"br0"},{"name":"eth0"}],"ips":[{"address":"10.0.0.1/8","interface":0},'
    host += b'{"address":"10.0.0.2/8","interface":1},{"address":"10.0.0.3/8"}]}'
    assert parse_result(host, "1.0.0", "eth0").ips == ("10.0.0.2", "10.0.0.3")


@pytest.mark.parametrize(
    ("stdout", "reason"),
    [
        (b"", "invalid result"),
        (b"[]", "Expected `object`"),
        (b'{"ips":[{"address":"10.0.0.300/8"}]}', '"10.0.0.300/8" is not an address'),
        (b'{"ips":[{"address":"10.0.0.3/8","interface":2}]}', "on interface 2 of 0"),
    ],
)
def test_wrong_results_are_refused(stdout: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_result(stdout, "1.0.0", "eth0")


@pytest.mark.parametrize(
    ("text", "value"),
    [("10M", 10**7), ("1.5Gi", 3 * 2**29), ("1e6", 10**6), ("2500", 2500), ("1E", 10**18), ("1k", 1000)],
)
def test_quantities(text: str, value: int) -> None:
    assert parse_quantity(text) == value


@given(st.text(max_size=12))
def test_quantities_are_numbers_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(parse_quantity(text), Decimal)


def test_bandwidth_annotations_become_limits_or_errors() -> None:
    limited = attachment(annotations={"kubernetes.io/ingress-bandwidth": "10M"})
    assert capability_args(limited)["bandwidth"] == {"ingressRate": 10_000_000, "ingressBurst": 2**32 - 1}
    for wrong in ("", "fast", "1", "2P", "-10M"):
        with pytest.raises(InvalidAttachment, match=r"kubernetes\.io/egress-bandwidth"):
            capability_args(attachment(annotations={"kubernetes.io/egress-bandwidth": wrong}))


@given(st.text(max_size=20), st.text(max_size=20))
def test_arguments_cannot_smuggle_further_ones(name: str, namespace: str) -> None:
    try:
        text = cni_args(attachment(pod_name=name, pod_namespace=namespace))
    except InvalidAttachment:
        return
    assert dict(pair.split("=") for pair in text.split(";")) == {
        "IgnoreUnknown": "1",
        "K8S_POD_NAMESPACE": namespace,
        "K8S_POD_NAME": name,
        "K8S_POD_INFRA_CONTAINER_ID": "s1",
        "K8S_POD_UID": "u",
    }


@pytest.mark.parametrize(
    "fields",
    [
        {"pod_name": "a;IP=10.0.0.1"}, {"pod_uid": "a=b"}, {"pod_namespace": "a\0b"}, {"sandbox_id": "../x"},
        {"sandbox_id": ""}, {"ifname": "a/b"}, {"ifname": ".."}, {"ifname": "sixteencharacter"}, {"netns": "\0"},
    ],
)  # fmt: skip
def test_unspeakable_attachments_are_refused(fields: dict[str, str]) -> None:
    with pytest.raises(InvalidAttachment):
        attachment_verb("ADD", parse_conflist(conflist(), "x"), attachment(**fields), [], "")
