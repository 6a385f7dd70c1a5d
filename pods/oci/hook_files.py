"""Reads OCI hooks for all containers from directories of JSON files, as described in oci-hooks(5) (version 1.0.0).

A file has a hook, its stages, and conditions (`when`) that must all hold for a container. A file in a later directory
hides those of the same name in earlier ones. Hooks run in the order of the file names. The files are read at each
creation, so a newly installed one takes effect at once. A broken file fails the creation: the container must not run
without a hook that was to guard it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pods import rules
from pods.errors import FailedPrecondition
from runtime.spec.values import HOOK_KINDS

_VERSION: Final = "1.0.0"
_CONDITIONS: Final = frozenset({"always", "annotations", "commands", "hasBindMounts"})


@dataclass(frozen=True, slots=True)
class HookFile:
    """A file's hook, in the form of config.json, and its conditions."""

    hook: Mapping[str, Any]
    stages: tuple[str, ...]
    always: bool | None = None
    annotations: tuple[tuple[re.Pattern[str], re.Pattern[str]], ...] = ()
    commands: tuple[re.Pattern[str], ...] = ()
    has_bind_mounts: bool | None = None

    def wants(self, annotations: Mapping[str, str], command: str, *, bind_mounts: bool) -> bool:
        """Return whether the hook applies to a container with these annotations, this program, and volumes or none."""
        if self.always is False or (self.has_bind_mounts is not None and self.has_bind_mounts != bind_mounts):
            return False
        for key, value in self.annotations:
            if not any(key.search(name) and value.search(text) for name, text in annotations.items()):
                return False
        return not self.commands or any(pattern.search(command) for pattern in self.commands)


def read_hooks(directories: Iterable[Path]) -> tuple[HookFile, ...]:
    """Read the hooks of all directories. Raises FailedPrecondition naming a broken file."""
    files: dict[str, Path] = {}
    for directory in directories:
        try:
            files |= {path.name: path for path in directory.iterdir() if path.suffix == ".json"}
        except (FileNotFoundError, NotADirectoryError):
            continue
    return tuple(_read(files[name]) for name in sorted(files))


def oci_hooks(
    files: Sequence[HookFile], annotations: Mapping[str, str], command: str, *, bind_mounts: bool
) -> dict[str, list[dict[str, Any]]]:
    """Return the `hooks` of a container's config.json: those whose conditions hold."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in files:
        if file.wants(annotations, command, bind_mounts=bind_mounts):
            for stage in file.stages:
                found.setdefault(stage, []).append(dict(file.hook))
    return found


def checked_hook(hook: object) -> dict[str, Any]:
    """Return a hook as config.json has it: `path`, `args`, `env`, and `timeout` in seconds. Raises ValueError."""
    if not isinstance(hook, Mapping):
        raise ValueError("hook: expected an object")
    path, timeout = hook.get("path"), hook.get("timeout")
    if not isinstance(path, str) or not path.startswith("/") or not rules.is_text(path):
        raise ValueError(f"hook.path: expected an absolute path, got {path!r}")
    checked: dict[str, Any] = {"path": path}
    for name in ("args", "env"):
        if (texts := hook.get(name)) is not None:
            checked[name] = _texts(f"hook.{name}", texts)
    if timeout is not None:
        if not isinstance(timeout, int) or isinstance(timeout, bool) or timeout <= 0:
            raise ValueError(f"hook.timeout: expected a number of seconds above 0, got {timeout!r}")
        checked["timeout"] = timeout
    return checked


def _read(path: Path) -> HookFile:
    try:
        return _parse(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise FailedPrecondition(f"read hook {path}: {reason}") from error


def _parse(document: object) -> HookFile:
    if not isinstance(document, dict):
        raise ValueError("expected an object")
    if document.get("version") != _VERSION:
        raise ValueError(f"version: expected {_VERSION!r}, got {document.get('version')!r}")
    stages = _texts("stages", document.get("stages"))
    wrong = [stage for stage in stages if stage not in HOOK_KINDS]
    if wrong or not stages:
        raise ValueError(f"stages: expected some of {', '.join(HOOK_KINDS)}, got {wrong or stages!r}")
    when = document.get("when")
    if not isinstance(when, dict) or not when:
        raise ValueError(f"when: expected an object with a condition, got {when!r}")
    if unknown := sorted(when.keys() - _CONDITIONS):
        raise ValueError(f"when: expected conditions among {', '.join(sorted(_CONDITIONS))}, got {unknown}")
    annotations = when.get("annotations") or {}
    if not isinstance(annotations, dict):
        raise ValueError(f"when.annotations: expected an object, got {annotations!r}")
    return HookFile(
        hook=checked_hook(document.get("hook")),
        stages=tuple(stages),
        always=_boolean("when.always", when.get("always")),
        annotations=tuple(
            (_pattern("when.annotations", key), _pattern("when.annotations", value))
            for key, value in annotations.items()
        ),
        commands=tuple(_pattern("when.commands", one) for one in _texts("when.commands", when.get("commands") or [])),
        has_bind_mounts=_boolean("when.hasBindMounts", when.get("hasBindMounts")),
    )


def _texts(member: str, value: object) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(one, str) and rules.is_text(one) for one in value):
        raise ValueError(f"{member}: expected strings without NUL")
    return list(value)


def _boolean(member: str, value: object) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise ValueError(f"{member}: expected true or false, got {value!r}")
    return value


def _pattern(member: str, text: object) -> re.Pattern[str]:
    if not isinstance(text, str):
        raise ValueError(f"{member}: expected a regular expression, got {text!r}")
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"{member}: {text!r} is not a regular expression: {error}") from error
