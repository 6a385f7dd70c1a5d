"""Implements the parent of a pod's processes: the zygote, the shim, and what the shim does for each container."""
