"""Images: references, registries, the content store, layers and their removal."""
