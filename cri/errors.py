"""Errors that keep crispd from starting. Each ends the daemon with its message."""


class DaemonError(Exception):
    """Base class of the daemon's errors."""


class ConfigurationError(DaemonError):
    """A flag or a key of a configuration file is invalid; the message names the flag, or the file and key."""


class StartupError(DaemonError):
    """The machine prevents the start: crispd is not root, or a socket or directory is in use or not writable."""
