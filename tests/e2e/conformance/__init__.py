"""Kubernetes' own conformance tests on crisp, offline: a cluster of two nodes, stand-ins for images, and the suite."""
