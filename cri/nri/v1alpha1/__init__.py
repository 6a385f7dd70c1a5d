"""NRI's messages, generated from api.proto and ttrpc.proto by `python -m cri.nri.v1alpha1`."""
