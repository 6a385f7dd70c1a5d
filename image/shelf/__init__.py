"""What the store has: records, names, layers on disk."""
