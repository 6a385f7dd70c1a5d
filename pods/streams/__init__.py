"""Exec, attach and port-forward: streams as file descriptors."""
