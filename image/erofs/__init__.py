"""EROFS indexes over the tars of layers, by which the kernel mounts the tars as they are."""
