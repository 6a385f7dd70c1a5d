"""The client's error family. `crisp` prints the message on standard error and exits with `exit_status`."""


class ClientError(Exception):
    """Base of the family: the command could not do what it was asked."""

    exit_status = 1


class UsageError(ClientError):
    """An argument makes no sense; the message names it."""

    exit_status = 2


class Unreachable(ClientError):
    """The daemon's socket cannot be used; the message says why and what to do."""


class UnknownName(ClientError):
    """Nothing, or more than one thing, has that id or name."""


class CallFailed(ClientError):
    """The daemon refused a call. `code` is the gRPC status code's name ("NOT_FOUND")."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class LogUnreadable(ClientError):
    """A container has no log, or the file cannot be read."""


class StreamFailed(ClientError):
    """The streams of a command or container could not be had, or broke."""
