"""Namespaces and what belongs to one: user mappings, interfaces, kernel parameters, proc file systems."""
