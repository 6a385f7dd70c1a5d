"""NRI: plugins outside the daemon that follow, and adjust, what happens to pods and containers."""
