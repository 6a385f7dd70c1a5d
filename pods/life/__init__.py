"""From creation to removal: sandboxes, containers, their shims, and recovery."""
