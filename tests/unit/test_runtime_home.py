"""HOME of a container's process, by its number in the container's passwd(5)."""

from __future__ import annotations

import pytest

from runtime.process.home import home_of, with_home
from runtime.spec.values import Process, User

PASSWD = b"""
root:x:0:0:root:/root:/bin/sh
second:x:0:0::/elsewhere:/bin/sh
# comment:x:7
8:x:1000:8:mail:/var/mail:/bin/sh
mail:x:8:8:mail:/var/mail:/bin/sh
none:x:9:9::
nul:x:10:10::/a\0b:
noshell:x:11:11::/no/shell
odd:x:12:12::/\xff:/bin/sh\r
"""


@pytest.mark.trial("home-from-passwd", "HOME, where absent or empty, is what the container's passwd has for the uid")
@pytest.mark.parametrize(
    ("uid", "home"),
    [(0, "/root"), (8, "/var/mail"), (1000, "/var/mail"), (9, "/"), (10, "/"), (11, "/no/shell"), (12, "/\udcff"),
     (5, "/")],
)  # fmt: skip
def test_the_first_line_of_the_number_counts(uid: int, home: str) -> None:
    assert home_of(uid, PASSWD) == home


@pytest.mark.trial("home-from-passwd", "HOME, where absent or empty, is what the container's passwd has for the uid")
def test_what_is_given_is_kept() -> None:
    for env in (("HOME=/own",), ("HOME=", "A=1", "HOME=/own")):
        assert with_home(Process("/", ("a",), env=env)).env == env
    nobody = User(2**31 + 5, 0)
    for env in ((), ("HOME=",), ("HOME=/own", "HOME=")):
        assert with_home(Process("/", ("a",), env=env, user=nobody)).env == ("HOME=/",)
