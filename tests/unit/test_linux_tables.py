"""What Linux calls things is what this one calls them."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from linux import lsm, selinux
from linux.tables import NAMESPACE_FLAGS, namespace_file

_NS_GET_NSTYPE = 0xB703


@pytest.mark.parametrize("kind", NAMESPACE_FLAGS)
def test_namespaces_have_the_kernels_files_and_flags(kind: str) -> None:
    path = namespace_file("self", kind)
    if not os.path.exists(path):
        pytest.skip("not of this kernel")
    with open(path) as file:
        assert fcntl.ioctl(file, _NS_GET_NSTYPE) == NAMESPACE_FLAGS[kind]


def test_a_security_module_is_on_where_the_kernel_says_so(tmp_path: Path) -> None:
    switch, policy = tmp_path / "module/apparmor/parameters/enabled", tmp_path / "fs/selinux/enforce"
    assert not lsm.apparmor_is_on(tmp_path)
    assert not lsm.selinux_is_on(tmp_path)
    switch.parent.mkdir(parents=True)
    policy.parent.mkdir(parents=True)
    for text, on in (("N\n", False), ("Y\n", True)):
        switch.write_text(text)
        assert lsm.apparmor_is_on(tmp_path) == on
    policy.write_text("0")
    assert lsm.selinux_is_on(tmp_path)


def test_a_policy_says_how_containers_are_labelled(tmp_path: Path) -> None:
    contexts = tmp_path / "selinux/default/contexts/lxc_contexts"
    contexts.parent.mkdir(parents=True)
    (tmp_path / "selinux/config").write_text("# of the machine\nSELINUX=enforcing\nSELINUXTYPE=default\n")
    assert selinux.container_contexts(tmp_path) is None
    contexts.write_text('process = "u:r:box_t:s0"\ncontent = "u:o:other_t:s0"\n\nfile = "u:o:box_file_t:s0"\n')
    assert selinux.container_contexts(tmp_path) == selinux.ContainerContexts("u:r:box_t:s0", "u:o:box_file_t:s0")
