"""Implements `crisp-oci`: the runtime core as an OCI runtime command with runc's command line.

`main` reads the global flags and imports only the requested command. Most of a command's time goes into starting the
interpreter and importing modules, so each command imports no more than it needs.
"""
