"""Sockets of the servers."""

from __future__ import annotations

import asyncio
import socket

import pytest

from tempertilt.errors import ConfigError
from tempertilt.serving.sockets import address, listen


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_what_is_written_is_sent_at_once(host: str) -> None:
    """Nagle's algorithm would keep a streamed token back until the client has acknowledged the one before."""
    found: list[int] = []

    async def serve() -> None:
        with listen(host, 0) as sock:
            done = asyncio.Event()

            async def connected(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                found.append(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
                writer.close()
                done.set()

            async with await asyncio.start_server(connected, sock=sock):
                _, writer = await asyncio.open_connection(*sock.getsockname()[:2])
                await done.wait()
                writer.close()

    asyncio.run(serve())
    assert found and found[0] != 0


def test_an_address_that_is_taken() -> None:
    with listen("127.0.0.1", 0) as sock:
        sock.listen()
        port = int(address(sock).rsplit(":", 1)[1])
        with pytest.raises(ConfigError, match=f"port {port}: .*choose another with --port"):
            listen("127.0.0.1", port)
