"""The parent of a pod's processes: zygote, shim, and what the shim does for each container."""
