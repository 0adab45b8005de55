"""Listen on an address and answer requests until Ctrl-C or SIGTERM."""

from __future__ import annotations

import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from medseg.errors import ConfigError
from medseg.serve.service import Service
from medseg.serve.web.app import create_app

_PATIENCE = 3  # seconds for open requests to end
_BACKLOG = 512


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to an address, so that a taken port is reported before models are loaded.

    Args:
        host: Name or address of the network interface.
        port: Port; 0 for a free one.

    Returns:
        The socket.

    Raises:
        ConfigError: The address is not available.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port}: cannot be listened on ({error.strerror or error}), expected a free port of this machine. Choose "
            "another with --port."
        ) from None


def run_server(service: Service, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Load the models and answer requests until a signal ends it; a job that runs then waits for the next start.

    Args:
        service: The service.
        listening: The socket.
        ready: Called when the models are loaded.

    Raises:
        ModelError: A model cannot be loaded.
        KeyboardInterrupt: A signal was received, after everything has ended.
    """
    try:
        # The application comes first, because FastAPI changes the filters of warnings, which all threads share.
        config = uvicorn.Config(
            create_app(service),
            log_config=None,  # requests are not logged, and events of jobs have a log of their own
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=_PATIENCE,
        )
        service.start()
        ready()
        _Server(config, service).run(sockets=[listening])
    finally:
        service.stop()
        listening.close()


class _Server(uvicorn.Server):
    """A server whose end begins with the end of the queue and of open streams of events.

    Args:
        config: Configuration.
        service: The service.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End at the next opportunity."""
        self._service.request_stop()
        super().handle_exit(sig, frame)
