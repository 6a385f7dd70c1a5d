"""The state of sandboxes and containers: in memory, on disk, as events, and as plugins see it."""
