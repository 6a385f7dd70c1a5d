"""The OCI runtime core: everything that touches the kernel for a process in a container.

Standard library only: the zygote and the shims run this package without site-packages.
"""
