"""The operator's client, the `crisp` command: one module per command or family of commands.

It reaches the daemon's state only through the socket. Log files are read at the path that ContainerStatus gives.
"""
