"""Compiles, intersects and loads seccomp filters, and lets the runtime's own late calls pass them."""
