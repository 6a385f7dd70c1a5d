"""The error family of crispd itself: what keeps it from starting. Each ends the daemon with its text."""


class DaemonError(Exception):
    """Base of the family."""


class ConfigurationError(DaemonError):
    """A flag or a line of a configuration file cannot be used; the message names the flag, or the file and key."""


class StartupError(DaemonError):
    """The machine does not let the daemon start: not root, a socket or directory in use or not writable."""
