"""`crisp doctor`: checks whether this machine can be a node, and shows how to fix what is wrong."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING

from cri.client.config import effective
from cri.client.doctor import kernel, node
from cri.client.doctor.machine import Finding, Level, Machine
from cri.client.errors import ClientError
from cri.client.render import document, new_layers, table
from cri.v1 import api_pb2
from cri.version import crisp_version

if TYPE_CHECKING:
    from cri.client.connection import Connection

_NEEDED = ("RuntimeReady", "NetworkReady")  # what kubelet waits for
_START = "systemctl enable --now crispd; journalctl -u crispd shows why it does not start"


def run(arguments: argparse.Namespace, connection: Connection) -> int:
    """Print the findings. Returns 1 if anything keeps pods from running."""
    findings = list(chain(examine(Machine(), not arguments.offline), daemon(connection)))
    if arguments.output == "table":
        rows = [(finding.level.value, finding.subject, finding.message) for finding in findings]
        table(("", "WHAT", "FOUND"), rows)
        for finding in findings:
            if finding.remedy:
                print(f"\n{finding.subject}: {finding.message}\n    {finding.remedy}")
    else:
        document({"findings": [asdict(finding) for finding in findings]}, arguments.output)
    return int(any(finding.level is Level.WRONG for finding in findings))


def examine(machine: Machine, reach: bool) -> Iterator[Finding]:
    """Run every check of the machine; with `reach` also check whether registries answer."""
    configuration = effective()
    yield from kernel.version(machine)
    yield from kernel.modules(machine)
    yield from kernel.sysctls(machine)
    yield from kernel.cgroups(machine, configuration.cgroup_driver)
    yield from kernel.security(machine)
    yield from node.cni(machine, configuration.cni_conf_dir, configuration.cni_bin_dirs)
    yield from node.registries(machine, configuration.registries_conf, reach)
    yield from node.disks(machine, configuration.root)
    yield from node.clock(machine)
    yield from node.swap(machine)
    yield from node.programs(machine)
    yield from node.service(machine)


def daemon(connection: Connection) -> Iterator[Finding]:
    """Check whether crispd answers, whether it has this version, and its conditions."""
    try:
        running = connection.read(connection.runtime.Version, api_pb2.VersionRequest())
        said = connection.read(connection.runtime.Status, api_pb2.StatusRequest(verbose=True))
    except ClientError as error:
        yield Finding(Level.WRONG, "crispd", str(error), _START)
        return
    if running.runtime_name == "crisp" and running.runtime_version != crisp_version():
        message = f"{running.runtime_version} runs, but {crisp_version()} is installed"
        yield Finding(Level.WARNING, "crispd", message, "systemctl restart crispd (pods keep running)")
    else:
        yield Finding(Level.OK, "crispd", f"{running.runtime_name} {running.runtime_version} at {connection.address}")
    for condition in said.status.conditions:
        if condition.status:
            yield Finding(Level.OK, condition.type, "yes")
        else:
            level = Level.WRONG if condition.type in _NEEDED else Level.WARNING
            yield Finding(level, condition.type, f"{condition.reason}: {condition.message}", "see above")
    if layers := new_layers(said):
        yield Finding(Level.OK, "new layers", layers)
