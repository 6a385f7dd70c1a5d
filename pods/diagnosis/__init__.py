"""Why a pod, a container or an image is not as it should be: a cause, its evidence and its remedy, from a recording."""
