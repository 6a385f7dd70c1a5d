"""Signatures, and the policy that requires them."""
