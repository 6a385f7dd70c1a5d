"""What a node runs: sandboxes and containers, their life and their durable state."""
