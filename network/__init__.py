"""CNI: conflists, plugin execution, cached results, and the network of one pod."""
