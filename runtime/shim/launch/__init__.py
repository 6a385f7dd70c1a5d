"""How a container's processes are made: by crisp itself, by another OCI runtime, or by criu from a checkpoint."""
