"""Parses config.json into typed values."""
