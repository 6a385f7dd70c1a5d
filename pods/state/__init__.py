"""Sandboxes and containers as they are: in memory, on disk, as events, for plugins."""
