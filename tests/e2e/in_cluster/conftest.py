"""The cluster that the tests of this directory share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kubernetes import client

from tests.criu import on_path
from tests.daemon import Daemon
from tests.e2e import workloads
from tests.e2e.cluster import NAMESPACE, Cluster

# What kubelet asks a runtime for when it may. Static pods (tests/e2e/test_static_pods.py) run without them.
GATES = (
    "EventedPLEG", "CRIListStreaming", "PodAndContainerStatsFromCRI", "ContainerStopSignals", "VolumeBindMountOptions",
    "ImageVolumeWithDigest", "UserNamespacesHostNetworkSupport", "DefaultPodSysctls", "PodLogsQuerySplitStreams",
)  # fmt: skip
SETTINGS = {
    "defaultPodSysctls": {"net.ipv4.ip_unprivileged_port_start": "80"},
    "volumeStatsAggPeriod": "1s",
}
RUNC = Path("/usr/sbin/runc")


@pytest.fixture(scope="package")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose kubelet has its gates for the runtime open, and whose crispd has a handler for Debian's runc.

    What takes long is begun here and looked at later.
    """
    configuration = tmp_path_factory.mktemp("crisp") / "crisp.toml"
    configuration.write_text(f'[runtime_handlers.runc]\npath = "{RUNC}"\n')
    with on_path(), Daemon.running("--config", str(configuration)) as daemon:
        daemon.import_busybox()
        with Cluster.running(daemon, dict.fromkeys(GATES, True), **SETTINGS) as running:
            batch = client.BatchV1Api(running.api)
            batch.create_namespaced_cron_job(NAMESPACE, workloads.cron_job("each-minute"))
            running.create(workloads.filling("layer", "/file"))
            running.create(workloads.filling("volume", "/disk/file"))
            yield running
