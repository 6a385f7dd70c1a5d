"""CRI v1 wire types, generated from api.proto by `python -m cri.v1`."""
