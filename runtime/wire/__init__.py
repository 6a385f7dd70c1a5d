"""Defines the protocols between the runtime's processes: frames, calls and reports."""
