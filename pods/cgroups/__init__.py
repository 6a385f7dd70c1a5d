"""The cgroups of pods: their paths, and the drivers that make them."""
