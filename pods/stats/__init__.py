"""The resource use of sandboxes and containers."""
