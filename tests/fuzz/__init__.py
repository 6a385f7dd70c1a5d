"""Fuzzers of every parser and wire: bytes go in, and a value or the parser's own error comes out, soon and small.

    python -m tests.fuzz --seconds 120            # every target; prints counts
    python -m tests.fuzz --seconds 3600 tar spdy  # some

An input that ends in anything else is made smaller and saved below `found`. tests/unit/test_fuzz.py tries each saved
one, and some hundred new ones for each target, always the same.
"""
