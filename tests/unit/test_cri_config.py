"""Where the daemon's configuration comes from, and what is refused of it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from cri.daemon.command_line import command_line
from cri.daemon.config import KEYS, Configuration
from cri.daemon.keys import Component
from cri.daemon.loading import load
from cri.errors import ConfigurationError
from cri.streaming.address import StreamAddress
from image.settings import ImageSettings
from pods.settings import NodeSettings
from runtime.handler import Handler


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_flags_win_over_drop_ins_over_the_file_over_defaults(tmp_path: Path) -> None:
    main = write(tmp_path / "crisp.toml", 'root = "/a"\nstate = "/a"\nlisten = "/a.sock"\nlog_level = "debug"\n')
    write(tmp_path / "crisp.toml.d" / "20.toml", 'state = "/c"\n')
    first = 'state = "/b"\nlisten = "unix:///b.sock"\ncni_bin_dirs = ["/x", "/y"]\n'
    write(tmp_path / "crisp.toml.d" / "10.toml", first)
    write(tmp_path / "crisp.toml.d" / "30.conf", "not read")
    found = load({"log_level": "error", "root": None, "trace_start": True}, main)
    assert (found.root, found.state, found.listen) == (Path("/a"), Path("/c"), "unix:///b.sock")
    assert found.socket == Path("/b.sock")
    assert (found.log_level, found.trace_start) == ("error", True)
    assert found.cni_bin_dirs == (Path("/x"), Path("/y"))
    assert found.registries_conf == Configuration().registries_conf
    assert found.sources == {
        "root": str(main),
        "state": f"{main}.d/20.toml",
        "listen": f"{main}.d/10.toml",
        "cni_bin_dirs": f"{main}.d/10.toml",
        "log_level": "--log-level",
        "trace_start": "--trace-start",
    }


def test_the_printed_configuration_reads_back_as_itself(tmp_path: Path) -> None:
    flags = {"root": '/r"\\é\N{CRAB}', "cni_bin_dirs": ["/a", "/b c"], "pause_image": "pause:1", "trace_start": True}
    odd = load(flags)
    printed = odd.to_toml()
    assert load(path=write(tmp_path / "again.toml", printed)) == odd
    assert tomllib.loads(printed) == odd.values()
    assert 'pause_image = "pause:1"  # --pause-image\n' in printed
    assert 'log_level = "info"  # default\n' in printed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rot = 1", "rot: is not a key of crisp; the keys are listen, root"),
        ("root = 1", "root: 1 must be a string"),
        ('root = "here"', "root: 'here' must be an absolute path"),
        ('listen = "tcp://1.2.3.4:5"', "listen: 'tcp://1.2.3.4:5' must be an absolute path"),
        (f'listen = "/{"x" * 107}"', "is too long: the path may have 107 bytes at most"),
        ('cni_bin_dirs = "/x"', "cni_bin_dirs: '/x' must be a list of paths"),
        ('log_level = "loud"', "log_level: 'loud' must be one of debug, info, warning, error"),
        ('cgroup_driver = "none"', "cgroup_driver: 'none' must be one of cgroupfs, systemd"),
        ('stream_addr = "localhost"', "stream_addr: 'localhost' must be an address and a port"),
        ('stream_addr = "[::1]:70000"', "stream_addr: '[::1]:70000' must be an address and a port"),
        ('trace_start = "yes"', "trace_start: 'yes' must be true or false"),
        ("root = ", "Invalid value (at end of document)"),
    ],
)
def test_what_cannot_be_used_is_refused_by_file_and_key(tmp_path: Path, text: str, said: str) -> None:
    file = write(tmp_path / "crisp.toml", text)
    with pytest.raises(ConfigurationError) as refusal:
        load(path=file)
    assert str(file) in str(refusal.value)
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"root": "r"}, "--root: 'r' must be an absolute path"),
        ({"cni_bin_dirs": ["b"]}, "--cni-bin-dir: ['b'] must be an absolute path"),
    ],
)
def test_a_bad_flag_is_named(flags: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match="--") as refusal:
        load(flags)
    assert str(refusal.value) == said


def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"read configuration .*/none.toml: No such file or directory"):
        load(path=tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("component", "made"),
    [(Component.NODE, NodeSettings), (Component.IMAGES, ImageSettings), (Component.STREAMING, StreamAddress)],
)
def test_a_component_is_told_all_that_it_takes_as_it_takes_it(component: Component, made: type) -> None:
    takes = {name: kind for name, kind in get_type_hints(made).items() if name != "images"}
    hints = get_type_hints(Configuration)
    gives = {key.attribute: hints[key.name] for key in KEYS.values() if key.component is component}
    gives |= dict.fromkeys(gives.keys() & {"progress_timeout"}, float)  # of whole seconds, in the file
    assert gives == takes


def test_each_flag_sets_a_key_and_nothing_when_it_is_not_given() -> None:
    given = vars(command_line().parse_args([]))
    assert given == {"config": None} | {name: None for name, key in KEYS.items() if key.flag}
    repeated = vars(command_line().parse_args(["--cni-bin-dir", "/a", "--cni-bin-dir", "/b"]))
    assert repeated["cni_bin_dirs"] == ["/a", "/b"]


def test_a_handler_has_a_kind_and_flags(tmp_path: Path) -> None:
    file = tmp_path / "crisp.toml"
    file.write_text('[runtime_handlers.g]\npath = "/runsc"\nkind = "gvisor"\noptions = ["--platform=kvm"]\n')
    loaded = load(path=file)
    assert loaded.runtime_handlers == {"g": Handler(Path("/runsc"), "gvisor", ("--platform=kvm",))}
    file.write_text(loaded.to_toml())
    assert load(path=file).runtime_handlers == loaded.runtime_handlers
    for wrong in ('kind = "kata"', 'options = "--x"', 'options = ["x"]', "colour = 1"):
        file.write_text(f'[runtime_handlers.g]\npath = "/runsc"\n{wrong}\n')
        with pytest.raises(ConfigurationError, match="runtime_handlers"):
            load(path=file)
