"""Exec, attach and port-forward over HTTP upgrades: WebSocket and SPDY/3.1, on a server of the daemon's own loop.

`server` listens, `connection` is one client's TCP connection, `handshake` what its request asks for. After the upgrade
a `Link` (`websocket`, `spdylink`) carries numbered streams of bytes; `remotecommand` and `portforward` join them to the
descriptors that the node hands out, by the sources and sinks of `pumps`.
"""
