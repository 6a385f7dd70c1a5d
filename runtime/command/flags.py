"""Parses command lines as runc's users write them: `--name value`, `--name=value`, `-n value`, also `-name value`."""

from __future__ import annotations

from runtime.errors import RuntimeCoreError
from runtime.light import dataclass

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class UsageError(RuntimeCoreError):
    """The command line is invalid."""


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag. `argument` names its value in the help, "" makes it a switch. If `repeated`, all values are kept."""

    name: str
    short: str = ""
    argument: str = ""
    repeated: bool = False
    help: str = ""


class Options:
    """The given flags. A missing text reads as "", a missing list as empty."""

    def __init__(self) -> None:
        self._values: dict[str, list[str]] = {}

    def add(self, name: str, value: str) -> None:
        self._values.setdefault(name, []).append(value)

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def text(self, name: str, default: str = "") -> str:
        return self._values[name][-1] if name in self._values else default

    def texts(self, name: str) -> list[str]:
        return self._values.get(name, [])

    def switch(self, name: str) -> bool:
        return self.text(name, "false").lower() in ("true", "t", "1")

    def number(self, name: str, default: int = 0) -> int:
        """Return the value as an integer. Raises UsageError."""
        text = self.text(name, str(default))
        try:
            return int(text, 0)
        except ValueError:
            raise UsageError(f"--{name}: expected a number, got {text!r}") from None


def parse(flags: Iterable[Flag], arguments: Sequence[str], *, mixed: bool = False) -> tuple[Options, list[str]]:
    """Return the flags before the first operand, and the operands. Raises UsageError.

    `mixed`: flags between and after the operands are parsed too, up to "--".
    """
    by_name = {name: flag for flag in flags for name in (flag.name, flag.short) if name}
    options = Options()
    rest, others = list(arguments), []
    while rest:
        word = rest.pop(0)
        if word == "--":
            break
        if not word.startswith("-") or word == "-":
            others.append(word)
            if mixed:
                continue
            break
        name, equals, value = word.lstrip("-").partition("=")
        flag = by_name.get(name)
        if flag is None:
            raise UsageError(f"flag provided but not defined: -{name}")
        if not flag.argument:
            value = value if equals else "true"
        elif not equals:
            if not rest:
                raise UsageError(f"flag needs an argument: -{name}")
            value = rest.pop(0)
        options.add(flag.name, value)
    return options, others + rest


def usage(flags: Iterable[Flag]) -> str:
    """Format the help: one line for each flag."""
    lines = []
    for flag in flags:
        names = f"--{flag.name}" + (f", -{flag.short}" if flag.short else "")
        names += f" {flag.argument}" if flag.argument else ""
        lines.append(f"  {names:32}  {flag.help}".rstrip())
    return "\n".join(lines)
