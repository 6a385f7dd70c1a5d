"""Builds a container's file system: layers, mounts, and the tree of both."""
