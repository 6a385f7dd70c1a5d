"""What an operator may ask of the daemon that CRI has no call for: the messages of the service `crisp.v1.Admin`."""
