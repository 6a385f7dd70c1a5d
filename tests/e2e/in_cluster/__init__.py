"""Tests on one cluster: made once, used by all of them."""
