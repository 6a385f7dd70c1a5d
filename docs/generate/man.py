"""Writes the man pages in roff (man(7))."""

from __future__ import annotations

import re

from docs.generate import configuration
from docs.generate.commands import Command, Option

_FILES = {
    "crispd": {
        "/etc/crisp/crisp.toml": "Configuration: crisp.toml(5).",
        "/run/crisp/crisp.sock": "The CRI socket.",
        "/var/lib/crisp": "Images, and the state of pods and containers that survives a reboot.",
        "/run/crisp": "Sockets, bundles and exit statuses.",
    },
    "crisp": {"/etc/crisp/crisp.toml": "Names the daemon's socket: crisp.toml(5)."},
    "crisp-oci": {"/run/crisp-oci": "State of containers; for an ordinary user: $XDG_RUNTIME_DIR/crisp-oci."},
}
_SIGNALS = {
    "crispd": {
        "SIGTERM, SIGINT": "Stop. Containers keep running.",
        "SIGHUP": "Read the configuration again.",
    },
}
_EXIT = {
    "crispd": "0 when stopped by a signal; else 1, with a line on standard error.",
    "crisp": "0 for success; 1 for a failure, with a line on standard error; 2 for an invalid command line. run, "
    "exec and attach exit with the status of the container's process, or with 125 for a failure of their own.",
    "crisp-oci": "0 for success; 1 for a failure, with a line on standard error; 255 for an exec that could not be "
    "executed. run and exec in the foreground exit with their process's status, or with 128 plus the number of the "
    "signal that ended it.",
}
_PAGES = ("crisp(1)", "crisp.toml(5)", "crisp-oci(8)", "crispd(8)")


def page(program: Command) -> str:
    """Return a program's page."""
    own = f"{program.name}({program.section})"
    lines = [_title(program.name, program.section), ".SH NAME", f"{_text(program.name)} \\- {_summary(program)}"]
    lines += [".SH SYNOPSIS", f".B {_text(program.synopsis)}"]
    lines += [".SH DESCRIPTION", _text(f"{program.summary}.")]
    lines += [".PP", _text(program.notes)] if program.notes else []
    lines += [".SH OPTIONS", *_options(program.options)]
    if program.commands:
        lines.append(".SH COMMANDS")
        for command in program.commands:
            lines += _command(command)
    for title, table in (("SIGNALS", _SIGNALS), ("FILES", _FILES)):
        if program.name in table:
            lines.append(f".SH {title}")
            for name, meaning in table[program.name].items():
                lines += [".TP", f".B {_text(name)}", _text(meaning)]
    lines += [".SH EXIT STATUS", _text(_EXIT[program.name]), *_see_also(own)]
    return "\n".join(lines) + "\n"


def configuration_page() -> str:
    """Return the page crisp.toml(5)."""
    lines = [_title("crisp.toml", 5), ".SH NAME", "crisp.toml \\- configuration of crispd", ".SH SYNOPSIS"]
    lines += [".B /etc/crisp/crisp.toml", ".br", ".B /etc/crisp/crisp.toml.d/*.toml", ".SH DESCRIPTION"]
    lines.append(
        _text(
            "The format is TOML. Every key is optional. Drop-ins are read after the file in the order of their names; "
            "each of their keys overrides the file's. Flags of crispd override both. crispd does not start with an "
            "unknown key or an invalid value. `crisp config` prints the values in use and where each comes from. "
            f"SIGHUP applies {configuration.reloaded()}; other changes need a restart."
        )
    )
    for title, found in configuration.groups():
        lines.append(f".SH {_text(title.upper())}")
        for key in found:
            lines += [".TP", f"\\fB{_text(key.name)}\\fR = {_text(configuration.default(key))}"]
            lines += [_text(configuration.meaning(key)), ".br"]
            lines.append(_text(f"Takes {key.takes}." + (f" Flag: {key.option}." if key.flag else "")))
    return "\n".join([*lines, *_see_also("crisp.toml(5)")]) + "\n"


def _title(name: str, section: int) -> str:
    return f'.\\" Made by python -m docs.generate.\n.TH {name.upper()} {section} "" crisp crisp'


def _summary(program: Command) -> str:
    first = program.summary.split(":")[0]
    return _text(first[0].lower() + first[1:] if first.split()[0] != "Kubernetes" else first)


def _command(command: Command) -> list[str]:
    lines = [f".SS {_text(command.name)}"]
    if not command.commands:
        lines += [f".B {_text(command.synopsis)}", ".PP", _text(f"{command.summary}.")]
        return [*lines, *_options(command.options)]
    lines.append(_text(f"{command.summary}."))
    for action in command.commands:
        lines += [".TP", f".B {_text(action.synopsis)}", _text(f"{action.summary}.")]
        for option in action.options:
            lines += [".br", f"\\fB{_text(_names(option))}\\fR: {_text(option.meaning)}"]
    return lines


def _options(options: tuple[Option, ...]) -> list[str]:
    lines = []
    for option in options:
        lines += [".TP", f".B {_text(_names(option))}", _text(option.meaning) or "\\&"]
    return lines


def _names(option: Option) -> str:
    return ", ".join(option.names) + (f" {option.argument}" if option.argument else "")


def _see_also(own: str) -> list[str]:
    return [".SH SEE ALSO", ", ".join(_text(page) for page in _PAGES if page != own)]


def _text(text: str) -> str:
    """Escape text for roff: hyphens that can be copied, no line that starts like a request."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "").replace("\N{EN DASH}", "\\(en")
    return re.sub(r"^([.'])", r"\\&\1", escaped, flags=re.MULTILINE)
