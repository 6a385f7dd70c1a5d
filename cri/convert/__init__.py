"""Between CRI's messages and the values of `pods.model`, both ways; what enters is validated here and nowhere else.

Every conversion of a request raises `pods.errors.InvalidArgument` whose message is the path of the field in the request
("config.mounts[2].host_path"), its value, and what is wrong with it.
"""
