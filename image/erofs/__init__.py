"""EROFS: indexes over the tars of layers, by which the kernel mounts them as they are."""
