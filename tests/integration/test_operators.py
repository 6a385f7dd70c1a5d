"""What an operator asks a node for: what holds its disk, what is wrong on it, one archive for a bug report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.daemon import Daemon
from tests.images import build_image, busybox_layer, entry, layer, write_layout
from tests.integration.test_crisp_command import crisp

_MIB = 1 << 20


def _holdings(daemon: Daemon) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(crisp(daemon, "df", "-o", "json").stdout)["holdings"]
    return [{**one, **{key: int(one[key]) for key in ("bytes", "shared", "frees")}} for one in found]


def test_each_byte_has_a_holder(fresh_daemon: Daemon, tmp_path: Path) -> None:
    daemon = fresh_daemon
    config = {"Cmd": ["sleep", "1000"]}
    images = {
        f"localhost/{name}:1": build_image([busybox_layer(), layer(entry(name, b"x" * _MIB))], config)
        for name in ("used", "idle")
    }
    daemon.import_image(write_layout(tmp_path / "layout", images))
    stray = daemon.root / "containers" / "nobodys"
    with daemon.pod("writes") as pod:
        container = pod.run("sh", "-c", "head -c 3145728 /dev/zero >/file; sleep 1000", image="localhost/used:1")
        while pod.exec(container, "stat", "-c", "%s", "/file").stdout.strip() != b"3145728":
            pass
        stray.mkdir(parents=True)
        (stray / "file").write_bytes(b"x" * _MIB)
        found = _holdings(daemon)
        used, idle = (next(one for one in found if one["name"] == name) for name in images)
        assert (used["users"], used["frees"]) == (["default/writes/main"], 0)
        assert idle["users"] == []
        assert idle["frees"] == idle["bytes"] >= _MIB  # its own layer alone
        (shared,) = (one for one in found if one["kind"] == "shared layers")
        assert shared["bytes"] == used["shared"] == idle["shared"] > 0
        assert shared["frees"] == 0  # the used image needs them
        (layers,) = (one for one in found if one["kind"] == "container")
        assert layers["id"] == container
        assert layers["bytes"] >= 3 * _MIB
        (nobodys,) = (one for one in found if one["kind"] == "stray")
        assert (nobodys["name"], nobodys["frees"] >= _MIB) == (str(stray), True)
        assert {"log", "recordings", "own"} <= {one["kind"] for one in found}
        table = crisp(daemon, "df", "--verbose").stdout
        assert "localhost/used:1" in table
        assert table.splitlines()[-1].startswith("all ")
    (stray / "file").unlink()
    stray.rmdir()
