"""The client's errors. `crisp` prints the message on standard error and exits with `exit_status`."""


class ClientError(Exception):
    """Base class: the command failed."""

    exit_status = 1


class UsageError(ClientError):
    """An argument is invalid; the message names it."""

    exit_status = 2


class Unreachable(ClientError):
    """The daemon's socket cannot be used; the message gives the reason and advice."""


class UnknownName(ClientError):
    """No object, or more than one, has that id or name."""


class CallFailed(ClientError):
    """The daemon refused a call. `code` is the name of the gRPC status code ("NOT_FOUND")."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class LogUnreadable(ClientError):
    """A container has no log, or the file cannot be read."""


class StreamFailed(ClientError):
    """The streams of a command or container could not be opened, or broke."""
