"""Implements the commands of `crisp-oci`, one module each."""
