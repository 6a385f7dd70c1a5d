"""Seccomp filters: compiled, intersected, loaded, and passed by what has to follow."""
