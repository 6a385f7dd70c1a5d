"""Measures crisp beside the other CRI runtimes of the machine: `python -m tests.bench` (as root)."""
