"""What of the documentation is made from source: the references, the man pages, the pictures, deploy/crisp.toml.

`python -m docs.generate` writes it; tests/unit/test_docs.py fails while the files are not what it would write.
"""
