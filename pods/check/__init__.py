"""Holds the database, the shims, the kernel, the network and the image store against each other: `crisp check`."""
