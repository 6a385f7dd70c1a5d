"""The messages of the service `crisp.v1.Admin`: operators' calls that CRI does not have."""
