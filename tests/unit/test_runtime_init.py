"""What a container's init does, as far as it is a matter of values."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest

from runtime.namespaces.user import UserNamespaces
from runtime.process.init import Start, cgroup_owner
from runtime.rootfs.plan import plan_mount
from runtime.spec.values import Mount, Namespace


@pytest.mark.parametrize(
    ("options", "owner"), [((), 1000), (("rw",), 1000), (("nosuid", "ro"), 0), (("rro",), 0), (("rw", "rro"), 0)]
)
def test_who_gets_the_cgroup(options: tuple[str, ...], owner: int) -> None:
    plan = plan_mount(Mount("/sys/fs/cgroup", "cgroup", "cgroup", options), "mounts[0]")
    start = SimpleNamespace(
        spec=SimpleNamespace(linux=SimpleNamespace(namespace=lambda kind: Namespace(kind))),
        users=UserNamespaces(),
        cgroup=SimpleNamespace(hierarchies=SimpleNamespace(pure_v2=True)),
        mounts=[plan],
        process=SimpleNamespace(user=SimpleNamespace(uid=1000)),
    )
    assert cgroup_owner(cast(Start, start)) == owner
