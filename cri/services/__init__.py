"""The calls of CRI v1, one module a group; methods carry the names CRI gives the calls.

A call validates its request, asks the node for one thing, and turns the answer into a message. Errors are mapped to
gRPC codes by `cri.server`. The calls that no group has are answered UNIMPLEMENTED there.
"""
