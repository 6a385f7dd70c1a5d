"""The content of the store: records, names, layers on disk."""
