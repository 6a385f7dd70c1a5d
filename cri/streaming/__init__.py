"""Exec, attach and port-forward over HTTP upgrades, WebSocket and SPDY/3.1, on the daemon's own event loop.

`server` listens; `connection` is a client's TCP connection; `handshake` parses its request. After the upgrade a `Link`
(`websocket`, `spdylink`) carries numbered streams of bytes. `remotecommand` and `portforward` connect these to the
descriptors that the node provides, by means of the sources and sinks in `pumps`.
"""
