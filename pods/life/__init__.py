"""The life of sandboxes and containers: creation, start, stop, removal, their shims, and recovery."""
