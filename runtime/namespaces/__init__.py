"""Handles what belongs to namespaces: id mappings, network interfaces, kernel parameters."""
