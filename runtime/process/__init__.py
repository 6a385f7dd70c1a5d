"""What runs in the child: from the clone to the execve of the container's program."""
