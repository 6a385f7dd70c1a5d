"""The cgroups of pods: where they are, and who makes them."""
