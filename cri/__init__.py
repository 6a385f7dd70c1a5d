"""CRI v1 over gRPC, configuration, the daemon and the `crisp` command."""
