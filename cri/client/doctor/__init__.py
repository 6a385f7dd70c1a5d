"""The checks of `crisp doctor`: can this machine be a node? They return findings and change nothing."""
