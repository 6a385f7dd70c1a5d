"""Signatures and the policy that asks for them."""
