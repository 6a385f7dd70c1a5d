"""crisp.toml from cri.config: the sample file and the reference page."""

from __future__ import annotations

import argparse
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

from cri.daemon.config import KEYS, RELOADED, Configuration
from cri.daemon.main import command_line
from docs.generate import keys

_HEAD = """\
# crispd's configuration: /etc/crisp/crisp.toml. Every key is optional; what is commented out here is the default.
# Files /etc/crisp/crisp.toml.d/*.toml are read after this one, in the order of their names, and win key by key; flags
# of crispd win over both. `crisp config` prints what is in force and where each value is from. A reload (systemctl
# reload crispd) puts {reloaded} in force; the rest waits for a restart, which pods do not notice.
"""
_INTRODUCTION = """\
# crisp.toml

<!-- Made by python -m docs.generate from cri/daemon/config.py and docs/generate/keys.py. -->

Every key is optional. How files, drop-ins and flags go together: [Configure](../configure.md). A reload (SIGHUP) puts
{reloaded} in force; every other change waits for a restart of crispd, which pods do not notice.
"""
_PROBE = "?"  # what only a plain string takes


@dataclass(frozen=True, slots=True)
class Key:
    """All that there is to say of a key; `flag` is crispd's flag for it, or empty."""

    name: str
    kind: str
    default: str
    meaning: str
    flag: str
    reloaded: bool


def groups() -> Iterator[tuple[str, list[Key]]]:
    """The keys by subject. Raises KeyError for one that has no text."""
    for name in KEYS:
        keys.text(name)
    for title, texts in keys.GROUPS.items():
        yield title, [_key(name, text) for name, text in texts.items()]


def _key(name: str, text: str) -> Key:
    default = Configuration().values()[name]
    return Key(name, _kind(name), json.dumps(default), text, _flags().get(name, ""), name in RELOADED)


def _kind(name: str) -> str:
    """What the key takes, in the words of the error that anything else is refused with."""
    try:
        KEYS[name](_PROBE)
    except ValueError as error:
        kind = str(error).removeprefix("must be ")
    else:
        kind = "a string"
    return f"{kind}, or empty" if Configuration().values()[name] == "" else kind


def _flags() -> dict[str, str]:
    actions: list[argparse.Action] = command_line()._actions
    return {action.dest: action.option_strings[-1] for action in actions}


def reloaded() -> str:
    """The keys that SIGHUP puts in force, in words."""
    *most, last = RELOADED
    return f"{', '.join(most)} and {last}" if most else last


def sample() -> str:
    """deploy/crisp.toml: every key with its meaning, commented out, with its default."""
    parts = [_HEAD.format(reloaded=reloaded())]
    for title, found in groups():
        parts.append(f"\n## {title}\n")
        for key in found:
            told = f"{key.meaning} {key.kind[0].upper()}{key.kind[1:]}."
            comment = textwrap.fill(
                told, 120, initial_indent="# ", subsequent_indent="# ", break_long_words=False, break_on_hyphens=False
            )
            parts.append(f"\n{comment}\n#{key.name} = {key.default}\n")
    return "".join(parts)


def page() -> str:
    """The reference of all keys."""
    parts = [_INTRODUCTION.format(reloaded=reloaded())]
    for title, found in groups():
        parts.append(f"\n## {title}\n")
        for key in found:
            facts = [f"Takes {key.kind}.", f"Default: `{key.default}`."]
            facts += [f"Flag: `{key.flag}`."] if key.flag else []
            meaning = key.meaning.replace("<", "&lt;")
            parts.append(f"\n### `{key.name}`\n\n{meaning}\n\n{' '.join(facts)}\n")
    return "".join(parts)
