"""Exec, attach and port-forward, as descriptors."""
