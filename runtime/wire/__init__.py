"""What crosses a process boundary of the runtime: frames, calls and reports."""
