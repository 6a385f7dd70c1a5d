"""One module for each command of `crisp-oci`."""
