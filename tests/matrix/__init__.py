"""Tables of what is supported and which test shows it: docs/oci.md and docs/cri.md, made from markers on the tests.

`python -m tests.matrix` writes them; tests/unit/test_matrix.py fails when one is stale or has a row without a test.
The rows come from the typed configuration (runtime/spec/values.py) and from CRI's descriptors, so that none is
forgotten.
"""
