"""config.json: the values it is read into, and the reading."""
