"""Writes container logs in the format that kubelet reads, and opens log files safely."""
