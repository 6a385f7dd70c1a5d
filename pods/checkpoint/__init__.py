"""Checkpoints of containers and pods, and their restores."""
