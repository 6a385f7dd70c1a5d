"""Builds config.json from a CRI request and an image."""
