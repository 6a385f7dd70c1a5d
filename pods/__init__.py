"""The pods and containers of a node: their life and their durable state."""
