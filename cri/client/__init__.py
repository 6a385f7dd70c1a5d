"""The operator's client: what the `crisp` command does, one module per command or family of commands.

Nothing here touches the daemon's state but through its socket; log files are read where ContainerStatus says they are.
"""
