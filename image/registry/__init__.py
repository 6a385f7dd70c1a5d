"""Talking to registries: names to endpoints, authentication, HTTP."""
