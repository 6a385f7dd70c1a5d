"""Which volume hides a program that was not found."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from pods.life.hidden import hidden
from pods.model import Mount

_MOUNTS = (Mount("/etc/hosts"), Mount("/app/"), Mount("/opt/node"))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        ('exec: "/app/server": stat /app/server: no such file or directory', "the volume on `/app` hides"),
        ('exec: "./server": stat ./server: no such file or directory', "hides the image's `/app/server`"),
        ('exec: "server": executable file not found in $PATH', "hides the image's `/app/server`"),
        ('exec: "/run": no such file or directory: its interpreter "/opt/node/node" (#!) is', "`/opt/node/node`"),
        ('exec: "/app/other": stat /app/other: no such file or directory', ""),
        ('exec: "/bin/sh": stat /bin/sh: no such file or directory', ""),
        ('exec: "/appserver": stat /appserver: no such file or directory', ""),
    ],
)
def test_a_volume_hides_what_the_image_has(tmp_path: Path, error: str, told: str) -> None:
    for name in ("app/server", "opt/node/node", "bin/sh", "appserver"):
        path = tmp_path / "upper" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    process = {"env": ["A=b", "PATH=/usr/bin:/app"], "cwd": "/app"}
    (tmp_path / "lower").mkdir()
    found = hidden(error, _MOUNTS, process, [tmp_path / "upper", tmp_path / "lower"])
    assert told in found
    assert bool(found) == bool(told)


@pytest.mark.parametrize("gone", ["removed", "hidden"])
def test_what_an_upper_layer_took_away_is_not_there(tmp_path: Path, gone: str) -> None:
    upper, lower = tmp_path / "upper", tmp_path / "lower"
    for name in ("server", "other"):
        (lower / "app").mkdir(parents=True, exist_ok=True)
        (lower / "app" / name).touch()
    (upper / "app").mkdir(parents=True)
    if gone == "removed":
        os.mknod(upper / "app/server", stat.S_IFCHR, 0)
    else:
        os.setxattr(upper / "app", "trusted.overlay.opaque", b"y")
        (upper / "app/other").touch()
    for name in ("server", "other"):
        error = f'exec: "/app/{name}": stat /app/{name}: no such file or directory'
        assert bool(hidden(error, _MOUNTS, {}, [upper, lower])) == (name == "other")


def test_no_link_of_the_image_leads_out_of_its_layer(tmp_path: Path) -> None:
    (tmp_path / "host").mkdir()
    (tmp_path / "host/server").touch()
    error = 'exec: "/app/server": stat /app/server: no such file or directory'
    for number, link in enumerate((str(tmp_path / "host"), "../host")):
        layer = tmp_path / f"layer{number}"
        layer.mkdir()
        (layer / "app").symlink_to(link)
        assert hidden(error, _MOUNTS, {}, [layer]) == ""
    (layer / "srv").mkdir()
    (layer / "srv/server").touch()
    (layer / "app").unlink()
    (layer / "app").symlink_to("/srv")
    assert "hides" in hidden(error, _MOUNTS, {}, [layer])
    (tmp_path / "upper/opt").mkdir(parents=True)
    (tmp_path / "upper/app").symlink_to("opt/../srv/./none/..")
    assert hidden(error, _MOUNTS, {}, [tmp_path / "upper", layer]) == ""
    (tmp_path / "upper/app").unlink()
    (tmp_path / "upper/app").symlink_to("opt/../srv/.")
    assert "hides" in hidden(error, _MOUNTS, {}, [tmp_path / "upper", layer])
    (tmp_path / "upper/app").unlink()
    (tmp_path / "upper/app").symlink_to("app")
    assert hidden(error, _MOUNTS, {}, [tmp_path / "upper", layer]) == ""
