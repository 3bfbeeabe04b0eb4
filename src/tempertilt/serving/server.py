"""Run the application until it is told to stop; then running answers are finished first."""

from __future__ import annotations

import signal
import socket

import uvicorn
from fastapi import FastAPI

from tempertilt.serving.config import ServeConfig


def make_server(app: FastAPI, config: ServeConfig) -> uvicorn.Server:
    """uvicorn's server. On SIGINT or SIGTERM it takes no more requests and finishes those it has."""
    settings = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=config.shutdown_timeout,
        timeout_keep_alive=30,
        ws="none",
    )
    return uvicorn.Server(settings)


def run(app: FastAPI, config: ServeConfig, sock: socket.socket) -> None:
    """Serve on a socket until SIGINT or SIGTERM; a second SIGINT does not wait for running answers."""
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: None)  # uvicorn hands the signal on when it has finished: that is a clean end
    make_server(app, config).run(sockets=[sock])
