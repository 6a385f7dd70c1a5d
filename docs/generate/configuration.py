"""crisp.toml from the keys of cri.daemon.config: the sample file and the reference page."""

from __future__ import annotations

import itertools
import json
import textwrap
from collections.abc import Iterator

from cri.daemon.config import KEYS, plain
from cri.daemon.keys import Key

_HEAD = """\
# crispd's configuration: /etc/crisp/crisp.toml. Every key is optional; what is commented out here is the default.
# Files /etc/crisp/crisp.toml.d/*.toml are read after this one, in the order of their names, and win key by key; flags
# of crispd win over both. `crisp config` prints what is in force and where each value is from. A reload (systemctl
# reload crispd) puts {reloaded} in force; the rest waits for a restart, which pods do not notice.
"""
_INTRODUCTION = """\
# crisp.toml

<!-- Made by python -m docs.generate from cri/daemon/config.py. -->

Every key is optional. How files, drop-ins and flags go together: [Configure](../configure.md). A reload (SIGHUP) puts
{reloaded} in force; every other change waits for a restart of crispd, which pods do not notice.
"""


def groups() -> Iterator[tuple[str, list[Key]]]:
    """The keys by subject."""
    for title, found in itertools.groupby(KEYS.values(), lambda key: key.section):
        yield title, list(found)


def meaning(key: Key) -> str:
    """What a key is for, and whether a reload is enough."""
    return f"{key.text} A reload is enough." if key.reloaded else key.text


def default(key: Key) -> str:
    """A key's default, as crisp.toml would have it."""
    return json.dumps(plain(key.default))


def reloaded() -> str:
    """The keys that SIGHUP puts in force, in words."""
    *most, last = (key.name for key in KEYS.values() if key.reloaded)
    return f"{', '.join(most)} and {last}" if most else last


def sample() -> str:
    """deploy/crisp.toml: every key with its meaning, commented out, with its default."""
    parts = [_HEAD.format(reloaded=reloaded())]
    for title, found in groups():
        parts.append(f"\n## {title}\n")
        for key in found:
            told = f"{meaning(key)} {key.takes[0].upper()}{key.takes[1:]}."
            comment = textwrap.fill(
                told, 120, initial_indent="# ", subsequent_indent="# ", break_long_words=False, break_on_hyphens=False
            )
            parts.append(f"\n{comment}\n#{key.name} = {default(key)}\n")
    return "".join(parts)


def page() -> str:
    """The reference of all keys."""
    parts = [_INTRODUCTION.format(reloaded=reloaded())]
    for title, found in groups():
        parts.append(f"\n## {title}\n")
        for key in found:
            facts = [f"Takes {key.takes}.", f"Default: `{default(key)}`."]
            facts += [f"Flag: `{key.option}`."] if key.flag else []
            text = meaning(key).replace("<", "&lt;")
            parts.append(f"\n### `{key.name}`\n\n{text}\n\n{' '.join(facts)}\n")
    return "".join(parts)
