"""Runs in the child process: from the clone to the execve of the container's program."""
