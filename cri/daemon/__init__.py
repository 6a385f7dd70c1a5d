"""crispd: configuration, places, logging, metrics, traces, and the process itself."""
