"""A container's file system: layers, mounts and the tree they make."""
