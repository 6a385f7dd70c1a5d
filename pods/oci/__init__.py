"""From a CRI request and an image to config.json."""
