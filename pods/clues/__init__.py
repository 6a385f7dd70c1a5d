"""Looks at the machine for what a container's last words, or its exit, leave open: a port, a file, a killed process."""
