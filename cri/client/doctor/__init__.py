"""What `crisp doctor` looks at: a machine that is to be a node. Checks answer with findings and change nothing."""
