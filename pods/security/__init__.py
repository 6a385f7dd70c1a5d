"""What a container may do: capabilities, seccomp, AppArmor, SELinux, user namespaces, kernel parameters."""
