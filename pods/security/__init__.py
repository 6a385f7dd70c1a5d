"""Security of containers: capabilities, seccomp, AppArmor, SELinux, user namespaces, sysctls."""
