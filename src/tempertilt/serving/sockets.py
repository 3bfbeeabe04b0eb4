"""Where the package's servers listen."""

from __future__ import annotations

import socket

from tempertilt.errors import ConfigError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Names by which this machine alone is reached."""


def listen(host: str, port: int) -> socket.socket:
    """A socket that is bound to an address; port 0 is any free one. `ConfigError` where it can't be had.

    The protocol is named, since asyncio switches Nagle's algorithm off only on sockets that have it. Else a streamed token waits
    until the client has acknowledged the one before, which it may delay by 40 ms.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port is {port}; must be 0 (any free one) to 65535")
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"can't listen on {host}, port {port}: {error.strerror or error}; choose another with --port, or any free one with "
            "--port 0"
        ) from error
    return sock


def address(sock: socket.socket) -> str:
    """The URL of a socket."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
