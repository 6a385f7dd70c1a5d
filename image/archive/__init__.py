"""Reads and writes images in files."""
