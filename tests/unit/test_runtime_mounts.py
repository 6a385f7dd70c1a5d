"""Mount options to mount attributes."""

from __future__ import annotations

import pytest

from linux import syscalls as sys
from runtime.errors import OperationFailed, SpecError
from runtime.namespaces.user import IDMappings
from runtime.rootfs.plan import plan_mount, plan_mounts
from runtime.rootfs.tree import Rootfs
from runtime.spec.values import IDMapping, Linux, Mount, Root, Spec


def _plan(*options: str, type: str = "bind", source: str = "/src"):  # type: ignore[no-untyped-def]
    return plan_mount(Mount("/dst", type, source, options), "mounts[0]")


@pytest.mark.oci("mounts[].options: bind, rbind")
def test_a_kubernetes_volume() -> None:
    plan = _plan("rbind", "rprivate", "ro")
    assert (plan.bind, plan.recursive) == (True, True)
    assert plan.attr_set == sys.MOUNT_ATTR_RDONLY
    assert (plan.propagation, plan.propagation_recursive) == (sys.MS_PRIVATE, True)
    assert plan.data == ()


def test_the_last_of_opposite_options_wins() -> None:
    plan = _plan("bind", "ro", "nosuid", "rw", "noexec")
    assert plan.attr_set == sys.MOUNT_ATTR_NOSUID | sys.MOUNT_ATTR_NOEXEC
    assert plan.attr_clear == sys.MOUNT_ATTR_RDONLY


@pytest.mark.oci("mounts[].options: rro, rnosuid, rnodev, rnoexec, rnoatime, rnosymfollow ...")
def test_recursive_attributes_go_to_the_tree() -> None:
    plan = _plan("rbind", "rro", "rnoexec")
    assert plan.tree_attr_set == sys.MOUNT_ATTR_RDONLY | sys.MOUNT_ATTR_NOEXEC
    assert plan.attr_set == 0


def test_access_times_are_one_field() -> None:
    plan = _plan("bind", "noatime", "strictatime")
    assert plan.attr_set & sys.MOUNT_ATTR_ATIME == sys.MOUNT_ATTR_STRICTATIME


@pytest.mark.oci("mounts[].options: the file system's own")
def test_what_is_no_flag_is_data_of_the_file_system() -> None:
    plan = _plan("nosuid", "mode=755", "size=65536k", "newinstance", type="tmpfs", source="tmpfs")
    assert plan.data == (("mode", "755"), ("size", "65536k"), ("newinstance", None))


@pytest.mark.oci("linux.mountLabel")
def test_labels_are_for_file_systems_that_take_them() -> None:
    kinds = ("tmpfs", "devpts", "proc", "sysfs", "mqueue", "cgroup")
    mounts = (Mount("/b", "bind", "/x"), *(Mount(f"/{kind}", kind, kind) for kind in kinds))
    plans = plan_mounts(Spec("1.2.0", Root("rootfs"), mounts=mounts, linux=Linux(mount_label="a:b:c")))
    assert [plan.type for plan in plans if ("context", "a:b:c") in plan.data] == ["tmpfs", "devpts"]
    assert [plan.type for plan in plans if plan.label == "a:b:c"] == ["mqueue"]


@pytest.mark.parametrize(
    ("mount", "path"),
    [
        (Mount("/x", "bind", "/y", ("tmpcopyup",)), "mounts[3].options"),
        (Mount("/x", "bind", ""), "mounts[3].source"),
        (Mount("/x", "bind", "/y", ("idmap",)), "mounts[3].options"),
        (Mount("/x", "bind", "/y", (), (IDMapping(0, 0, 1),)), "mounts[3].uidMappings"),
    ],
)
def test_what_cannot_work_names_its_place(mount: Mount, path: str) -> None:
    with pytest.raises(SpecError) as raised:
        plan_mount(mount, "mounts[3]")
    assert raised.value.path == path


_USERS = IDMappings((IDMapping(0, 1000, 10),), (IDMapping(0, 2000, 10),))


@pytest.mark.oci("mounts[].uidMappings", "mounts[].gidMappings")
@pytest.mark.oci("mounts[].options: idmap, ridmap")
def test_mappings_of_a_bind_mount() -> None:
    lines = (IDMapping(0, 5, 1),)
    own = plan_mount(Mount("/x", "bind", "/y", ("ridmap",), lines, lines), "mounts[0]", _USERS)
    assert (own.idmap, own.idmap_recursive) == (IDMappings(lines, lines), True)
    containers = plan_mount(Mount("/x", "bind", "/y", ("idmap",)), "mounts[0]", _USERS)
    assert (containers.idmap, containers.idmap_recursive) == (_USERS, False)


def test_file_systems_of_a_user_namespace_belong_to_its_root() -> None:
    mounts = (
        Mount("/dev", "tmpfs", "tmpfs", ("mode=755", "gid=3")),
        Mount("/dev/pts", "devpts", "devpts", ("newinstance", "gid=5")),
    )
    spec = Spec("1.2.0", Root("rootfs"), mounts=mounts)
    tmpfs, devpts = plan_mounts(spec, _USERS)
    assert tmpfs.data == (("mode", "755"), ("gid", "2003"), ("uid", "1000"))
    assert devpts.data == (("newinstance", None), ("gid", "2005"))


def test_an_attribute_that_is_set_at_the_end_fails_with_its_mount() -> None:
    rootfs = Rootfs(-1)
    rootfs._set_late(-1, sys.MOUNT_ATTR_RDONLY, "/sys")
    with pytest.raises(OperationFailed, match="set attributes of the mount on `/sys`"):
        rootfs.restrict(Linux(), readonly=False)
