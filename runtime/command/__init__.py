"""`crisp-oci`: the runtime core as an OCI runtime command, with runc's command line.

`main` reads the global flags and imports the one command that is asked for: starting an interpreter and importing
modules is most of what a command costs, so each imports no more than it needs.
"""
