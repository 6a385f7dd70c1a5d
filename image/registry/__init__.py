"""Access to registries: from names to endpoints, authentication, HTTP."""
