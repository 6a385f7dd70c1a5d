"""Pulls: a single one, and all that are in flight."""
