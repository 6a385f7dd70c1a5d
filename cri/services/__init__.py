"""The calls of CRI v1, one module per group; the methods are named like the calls.

A call validates its request, calls the node, and converts the result. `cri.server` maps errors to gRPC codes, and
answers UNIMPLEMENTED for calls that no group has.
"""
