"""Converts between CRI's messages and the values of `pods.model`. Requests are validated here and nowhere else.

An invalid request raises `pods.errors.InvalidArgument`. Its message has the path of the field
("config.mounts[2].host_path"), its value, and what is wrong with it.
"""
