"""Pulls: one of them, and all that are in flight."""
