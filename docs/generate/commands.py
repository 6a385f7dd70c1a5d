"""The command lines as data: from the argparse trees of crispd and crisp, and from the tables of crisp-oci."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from cri.client.arguments import parser as crisp_parser
from cri.daemon.command_line import command_line as crispd_parser
from runtime.command.flags import Flag
from runtime.command.main import COMMANDS, GLOBAL_FLAGS


@dataclass(frozen=True, slots=True)
class Option:
    """A flag, with what it takes in `argument`, or an operand, which has no `names`."""

    names: tuple[str, ...]
    argument: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Command:
    """`section` is that of the manual; only programs have one. `operands` is as a synopsis has it."""

    name: str
    summary: str
    operands: str = ""
    options: tuple[Option, ...] = ()
    commands: tuple[Command, ...] = ()
    section: int = 0
    notes: str = ""

    @property
    def synopsis(self) -> str:
        """One line, flags left to their list."""
        flags = "[OPTION]..." if any(option.names for option in self.options) else ""
        rest = "COMMAND ..." if self.commands else self.operands
        return " ".join(part for part in (self.name, flags, rest) if part)


def crispd() -> Command:
    """The daemon."""
    return _program(crispd_parser(), 8)


def crisp() -> Command:
    """The operator's command."""
    return _program(crisp_parser(), 1)


def _program(parser: argparse.ArgumentParser, section: int) -> Command:
    described = (parser.description or "").removesuffix(".")
    return _command(parser, described, section)


def _command(parser: argparse.ArgumentParser, summary: str, section: int = 0) -> Command:
    inherited = set() if section else {"listen", "output", "timeout"}  # told once, with the program
    options, operands, commands = [], [], []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            commands = [_command(sub, helps[name]) for name, sub in action.choices.items()]
        elif not action.option_strings:
            operands.append(_operand(action))
        elif action.dest not in inherited and action.dest != "help":
            options.append(Option(tuple(action.option_strings), _argument(action), action.help or ""))
    return Command(
        parser.prog, summary, " ".join(operands), tuple(options), tuple(commands), section, parser.epilog or ""
    )


def _argument(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    if action.choices is not None:
        return "|".join(map(str, action.choices))
    return str(action.metavar or action.dest.upper())


def _operand(action: argparse.Action) -> str:
    name = str(action.metavar)
    return {None: name, "?": f"[{name}]", "*": f"[{name}...]", "+": f"{name}..."}.get(action.nargs, f"[{name}...]")


def crisp_oci() -> Command:
    """The OCI runtime's command."""
    commands = tuple(_oci_command(name, summary) for name, summary in COMMANDS.items())
    summary = "Run containers from OCI bundles, with runc's command line"
    return Command("crisp-oci", summary, options=tuple(_oci_options(GLOBAL_FLAGS)), commands=commands, section=8)


def _oci_command(name: str, summary: str) -> Command:
    module = importlib.import_module(f"runtime.command.verbs.{name}")
    options = tuple(_oci_options(module.FLAGS))
    return Command(f"crisp-oci {name}", summary[0].upper() + summary[1:], module.ARGUMENTS, options)


def _oci_options(flags: Iterable[Flag]) -> Iterator[Option]:
    for flag in flags:
        names = (f"-{flag.short}", f"--{flag.name}") if flag.short else (f"--{flag.name}",)
        yield Option(names, flag.argument, flag.help)
