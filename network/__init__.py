"""Runs CNI plugins: configuration lists, plugin execution, cached results, the network of a pod."""
