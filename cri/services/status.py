"""Version, Status, RuntimeConfig, UpdateRuntimeConfig."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from cri.convert.documents import info
from cri.v1 import api_pb2
from cri.version import crisp_version
from pods.handlers import BUILT_IN

if TYPE_CHECKING:
    from cri.services.node import Node

_KUBELET_API = "0.1.0"  # kubelet's own version of the call, the same since 2016

PLUGINS_READY = "NRIPluginsReady"
PLUGINS_ANSWER = "NRIPluginsAnswer"
SHIMS_ANSWER = "ShimsAnswer"
_NAMED = 10  # pods in the condition's message

_log = logging.getLogger(__name__)


class StatusCalls:
    """The calls for the runtime itself."""

    def __init__(self, node: Node, configuration: Mapping[str, object]) -> None:
        self._node = node
        self._configuration = configuration
        self._version = api_pb2.VersionResponse(
            version=_KUBELET_API, runtime_name="crisp", runtime_version=crisp_version(), runtime_api_version="v1"
        )

    async def Version(self, request: api_pb2.VersionRequest) -> api_pb2.VersionResponse:
        """Return name and versions."""
        return self._version

    async def Status(self, request: api_pb2.StatusRequest) -> api_pb2.StatusResponse:
        """Return the conditions that kubelet waits for, and the runtime handlers with their features."""
        network = self._node.network.status()
        conditions = [
            api_pb2.RuntimeCondition(type="RuntimeReady", status=True),  # always: crispd does not listen before
            api_pb2.RuntimeCondition(
                type="NetworkReady", status=network.ready, reason=network.reason, message=network.message
            ),
            self._shims(),
            *self._plugins(),
        ]
        able = api_pb2.RuntimeHandlerFeatures(
            recursive_read_only_mounts=self._node.host.recursive_read_only,
            user_namespaces=self._node.user_namespaces,
            cgroup_namespaces=True,
        )
        return api_pb2.StatusResponse(
            status=api_pb2.RuntimeStatus(conditions=conditions),
            runtime_handlers=[
                *(api_pb2.RuntimeHandler(name=name, features=able) for name in BUILT_IN),
                *(api_pb2.RuntimeHandler(name=name) for name in sorted(self._node.settings.runtime_handlers)),
            ],
            features=api_pb2.RuntimeFeatures(
                supplemental_groups_policy=True,
                user_namespaces_host_network=self._node.user_namespaces,
                mount_options=True,
                cgroup_mount_mode=True,
                seccomp_profile_oci=True,
            ),
            info=info(self._details()) if request.verbose else None,
        )

    def _shims(self) -> api_pb2.RuntimeCondition:
        """Make the condition of crisp's own. kubelet does not read it: the node's other pods are well."""
        silent = self._node.silent_shims()
        if not silent:
            return api_pb2.RuntimeCondition(type=SHIMS_ANSWER, status=True)
        named = ", ".join(f"{one.pod} (for {one.seconds:.0f} s)" for one in silent[:_NAMED])
        more = f" and {len(silent) - _NAMED} more" if len(silent) > _NAMED else ""
        return api_pb2.RuntimeCondition(
            type=SHIMS_ANSWER,
            status=False,
            reason="ShimsSilent",
            message=f"the shims of these pods do not answer: {named}{more}; delete a pod to end its shim",
        )

    def _plugins(self) -> Iterator[api_pb2.RuntimeCondition]:
        """Yield the conditions of NRI plugins: of those that pods need, if they need any, and of all, where served."""
        missing = self._node.missing_plugins()
        if missing:
            message = f"new pods need these NRI plugins, which are not connected: {', '.join(missing)}"
            yield api_pb2.RuntimeCondition(
                type=PLUGINS_READY, status=False, reason="NRIPluginsMissing", message=message
            )
        elif missing is not None:
            yield api_pb2.RuntimeCondition(type=PLUGINS_READY, status=True)
        apart = self._node.apart_plugins()
        if apart:
            named = ", ".join(f"{one.name} ({one.call}; asked again in {one.seconds:.0f} s)" for one in apart[:_NAMED])
            message = f"these NRI plugins did not answer, and pods go on without them: {named}; read their logs"
            yield api_pb2.RuntimeCondition(
                type=PLUGINS_ANSWER, status=False, reason="NRIPluginsSilent", message=message
            )
        elif apart is not None:
            yield api_pb2.RuntimeCondition(type=PLUGINS_ANSWER, status=True)

    def _details(self) -> dict[str, object]:
        images = self._node.images
        layers = {"kind": images.layer_kind, "erofs": images.unmountable or "mountable"}
        silent = [
            {"sandbox": one.sandbox_id, "pod": one.pod, "seconds": round(one.seconds)}
            for one in self._node.silent_shims()
        ]
        return {"config": self._configuration, "imageLayers": layers, "silentShims": silent}

    async def RuntimeConfig(self, request: api_pb2.RuntimeConfigRequest) -> api_pb2.RuntimeConfigResponse:
        """Return the cgroup driver, which kubelet follows."""
        driver = api_pb2.CgroupDriver.Value(self._node.settings.cgroup_driver.upper())
        return api_pb2.RuntimeConfigResponse(linux=api_pb2.LinuxRuntimeConfiguration(cgroup_driver=driver))

    async def UpdateRuntimeConfig(
        self, request: api_pb2.UpdateRuntimeConfigRequest
    ) -> api_pb2.UpdateRuntimeConfigResponse:
        """Log the node's pod CIDR. The network's operator, who writes the CNI configuration, knows it already."""
        pod_cidr = request.runtime_config.network_config.pod_cidr
        if pod_cidr:
            _log.info("pod CIDR set by kubelet", extra={"pod_cidr": pod_cidr})
        return api_pb2.UpdateRuntimeConfigResponse()
