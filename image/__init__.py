"""Images: references, registries, the store, its layers and their removal."""
