"""Layers from tars: in workers without rights."""
