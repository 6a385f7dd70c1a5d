"""Implements the OCI runtime core: all kernel operations for the processes of a container.

Standard library only: the zygote and the shims run this package without site-packages.
"""
