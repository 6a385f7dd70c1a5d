"""A cgroup limits the memory of all processes that unpack layers together."""

from __future__ import annotations

import os
from pathlib import Path

import grpc
import pytest
import zstandard

from tests.cgroups import hierarchies
from tests.daemon import Daemon
from tests.images import build_image, digest, entry, layer, write_layout

LIMIT = 64 << 20
ZSTD_LAYER = "application/vnd.oci.image.layer.v1.tar+zstd"


def _cgroup() -> Path:
    """The workers' cgroup in the hierarchy that has the memory controller."""
    homes = [path for path in hierarchies() if path.name == "memory" or _is_v2_with_memory(path)]
    if not homes:
        pytest.skip("no memory controller")
    return homes[0] / "crisp-layers"


def _is_v2_with_memory(path: Path) -> bool:
    controllers = path / "cgroup.controllers"
    return controllers.exists() and "memory" in controllers.read_text().split()


def _first(*paths: Path) -> int:
    return int(next(path for path in paths if path.exists()).read_text())


def test_workers_stay_within_their_memory(tmp_path: Path) -> None:
    place = _cgroup()
    large = layer(entry("large", os.urandom(1 << 20) * 160))
    wide = layer(entry("wide", bytes(160 << 20)))
    window = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
    packed = zstandard.ZstdCompressor(compression_params=window).compressobj()
    blob = packed.compress(wide) + packed.flush()
    needs_much = build_image([blob], compressed=False, layer_type=ZSTD_LAYER, diff_ids=[digest(wide)])
    conf = tmp_path / "crisp.toml"
    conf.write_text(f"pull_memory_limit = {LIMIT}\n")
    with Daemon.running(f"--config={conf}") as daemon:
        # What is written counts, too, and is given back once it is on the disk.
        daemon.import_image(write_layout(tmp_path / "large", {"localhost/large:1": build_image([large])}))
        assert _first(place / "memory.max", place / "memory.limit_in_bytes") == LIMIT
        for peak in (place / "memory.peak", place / "memory.max_usage_in_bytes"):
            if peak.exists():
                assert LIMIT // 2 < int(peak.read_text()) <= LIMIT
        with pytest.raises(grpc.RpcError, match="pull_memory_limit"):
            daemon.import_image(write_layout(tmp_path / "wide", {"localhost/wide:1": needs_much}))
        daemon.import_busybox()  # the next ones are not harmed
        with daemon.pod("inside") as pod:
            container = pod.run("sh", "-c", "exit 3")
            assert daemon.wait_exited(container).exit_code == 3
    assert not place.exists()
