"""Container logs: where they lie, and the format kubelet reads."""
