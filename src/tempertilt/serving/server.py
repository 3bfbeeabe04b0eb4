"""Run the application until it is told to stop; then running answers are finished first."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI
from uvicorn.config import LOGGING_CONFIG

from tempertilt.serving.config import ServeConfig


class Server(uvicorn.Server):
    """uvicorn's server, which on SIGINT or SIGTERM takes no more requests and finishes those it has.

    Args:
        app: the application.
        config: the seconds that running answers get.
        when_ready: called once connections are accepted.
    """

    def __init__(self, app: FastAPI, config: ServeConfig, when_ready: Callable[[], None] = lambda: None) -> None:
        settings = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            log_config=None if config.log_format == "json" else LOGGING_CONFIG,  # None: its messages go to the process's handler
            server_header=False,
            timeout_graceful_shutdown=config.shutdown_timeout,
            timeout_keep_alive=30,
            ws="none",
        )
        super().__init__(settings)
        self._when_ready = when_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections, and say so."""
        await super().startup(sockets)
        if self.started:
            self._when_ready()


def run(
    app: FastAPI,
    config: ServeConfig,
    sock: socket.socket,
    when_ready: Callable[[], None],
    on_hangup: Callable[[], None] | None = None,
) -> None:
    """Serve on a socket until SIGINT or SIGTERM; a second SIGINT does not wait for running answers. SIGHUP does what is given."""
    if on_hangup is not None and hasattr(signal, "SIGHUP"):
        hangup = on_hangup
        signal.signal(signal.SIGHUP, lambda *_: hangup())
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: None)  # uvicorn hands the signal on when it has finished: that is a clean end
    Server(app, config, when_ready).run(sockets=[sock])
