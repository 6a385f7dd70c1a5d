"""What sandboxes and containers use."""
