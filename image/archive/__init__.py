"""Images in files: read and written."""
