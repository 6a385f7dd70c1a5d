"""The cgroup of the workers that unpack layers, on version 2 with every controller. Run inside by run.py."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import zstandard

from cri.v1 import api_pb2 as cri
from tests.daemon import CALL_SECONDS
from tests.images import build_image, digest, entry, layer, write_layout
from tests.vm.inside.node import CGROUPS, Service

WORKERS = CGROUPS / "crisp-layers"
LIMIT = 48 << 20
DROP_IN = Path("/etc/crisp/crisp.toml.d/pulls.toml")
TAR, ZSTD_TAR = (f"application/vnd.oci.image.layer.v1.tar{form}" for form in ("", "+zstd"))


@pytest.fixture
def service() -> Iterator[Service]:
    """With that limit. Once it is stopped, the cgroup is gone."""
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    DROP_IN.write_text(f"pull_memory_limit = {LIMIT}\n")
    service = Service()
    service.start()
    yield service
    DROP_IN.unlink()
    service.stop()
    assert not WORKERS.exists()


def test_workers_stay_within_their_memory(service: Service, tmp_path: Path) -> None:
    """What is written counts, and is given back once it is on the disk. Whoever needs more is killed, and alone."""
    large = layer(entry("large", os.urandom(1 << 20) * 64))
    plain = build_image([large], compressed=False, layer_type=TAR)
    service.import_image(write_layout(tmp_path / "plain", {"localhost/large:1": plain}))
    assert _value("memory.max") == LIMIT
    assert _value("memory.swap.max") == 0
    if (WORKERS / "memory.peak").exists():  # since Linux 5.19
        assert LIMIT // 2 < _value("memory.peak") <= LIMIT
    assert _event("max") > 0  # it came to the limit
    assert _event("oom_kill") == 0
    wide = layer(entry("wide", bytes(72 << 20)))
    window = zstandard.ZstdCompressionParameters(window_log=26, write_content_size=False)
    packed = zstandard.ZstdCompressor(compression_params=window).compressobj()
    blob = packed.compress(wide) + packed.flush()
    needs_much = build_image([blob], compressed=False, layer_type=ZSTD_TAR, diff_ids=[digest(wide)])
    with pytest.raises(grpc.RpcError, match="pull_memory_limit"):
        service.import_image(write_layout(tmp_path / "wide", {"localhost/wide:1": needs_much}))
    assert _event("oom_kill") == 1
    service.import_busybox()
    for name in ("localhost/large:1", "localhost/busybox:latest"):
        request = cri.RemoveImageRequest(image=cri.ImageSpec(image=name))
        service.images.RemoveImage(request, timeout=CALL_SECONDS)


def _value(name: str) -> int:
    return int((WORKERS / name).read_text())


def _event(name: str) -> int:
    """How often it happened."""
    lines = (WORKERS / "memory.events").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.split()[0] == name)
