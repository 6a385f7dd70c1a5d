"""Finds out what is wrong with a pod, a container or an image: cause, evidence and remedy, from a recording."""
