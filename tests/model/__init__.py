"""The stateful model test: real CRI calls from several clients, every answer held against a model of the node."""
