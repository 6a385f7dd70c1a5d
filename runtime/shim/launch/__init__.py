"""Makes a container's processes: by crisp itself, by another OCI runtime, or by criu from a checkpoint."""
