"""A command line's reference as a page of the site."""

from __future__ import annotations

from docs.generate.commands import Command, Option

_MADE = "<!-- Made by python -m docs.generate from the command line's own definition. -->"


def page(program: Command) -> str:
    """The program, then each of its commands."""
    parts = [f"# {program.name}\n\n{_MADE}\n\n{program.summary}.\n\n```\n{program.synopsis}\n```\n"]
    parts.append(_table(program.options))
    if program.notes:
        parts.append(f"\n{program.notes}\n")
    parts += map(_section, program.commands)
    return "".join(parts)


def _section(command: Command) -> str:
    part = f"\n## {command.name}\n\n{command.summary}.\n\n```\n"
    if not command.commands:
        return f"{part}{command.synopsis}\n```\n{_table(command.options)}"
    # An action's flags go below its own line, not into a heading of its own: there are few.
    part += "\n".join(action.synopsis for action in command.commands) + "\n```\n\n| action | |\n| --- | --- |\n"
    for action in command.commands:
        told = f"{action.summary}. " + " ".join(f"{_names(option)}: {option.meaning}." for option in action.options)
        part += f"| `{action.name.split()[-1]}` | {told.strip()} |\n"
    return part


def _table(options: tuple[Option, ...]) -> str:
    if not options:
        return ""
    rows = [f"| {_names(option)} | {option.meaning.replace('|', chr(92) + '|')} |\n" for option in options]
    return "\n| option | |\n| --- | --- |\n" + "".join(rows)


def _names(option: Option) -> str:
    argument = f" {option.argument}" if option.argument else ""
    return f"`{', '.join(option.names)}{argument}`".replace("|", "\\|")
