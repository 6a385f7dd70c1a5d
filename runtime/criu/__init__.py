"""Checkpoints and restores containers with criu(8)."""
