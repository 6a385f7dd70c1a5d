"""Checkpoint and restore by criu(8)."""
