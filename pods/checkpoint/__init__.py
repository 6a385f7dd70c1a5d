"""Checkpoints and restores of containers and pods."""
