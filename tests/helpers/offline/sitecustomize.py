"""Refuse connections beyond this machine, in this Python process and in its children.

Python imports a module of this name at start-up from any folder on its path. `tests/conftest.py` puts this folder on ``PYTHONPATH`` and
sets ``MEDSEG_TESTS_OFFLINE``, so that the hook is also active in processes that tests start.
With ``MEDSEG_TESTS_SOCKETS``, the name of a file, what any of these processes does with a socket is appended to the file.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from typing import Any

_CONNECTING = {"socket.connect", "socket.sendto", "socket.sendmsg"}
_RESOLVING = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}


class NetworkAccess(BaseException):
    """A test tried to reach another machine. Derives from `BaseException` so that no handler hides it."""


def _is_local(host: Any) -> bool:
    if isinstance(host, bytes):
        host = host.decode()
    if host in (None, "", "localhost", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:
        return False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event in _CONNECTING:
        address = arguments[1]
        if isinstance(address, tuple) and not _is_local(address[0]):
            raise NetworkAccess(f"{event}: tests must not connect to {address[0]!r}")
    elif event in _RESOLVING and not _is_local(arguments[0]):
        raise NetworkAccess(f"{event}: tests must not resolve {arguments[0]!r}")


def _log(event: str, arguments: tuple[Any, ...]) -> None:
    # When it is imported, urllib3 binds a socket to this machine to find out whether there is IPv6, and connects to nothing.
    if event.startswith("socket.") and not _called_by("_has_ipv6"):
        with open(os.environ["MEDSEG_TESTS_SOCKETS"], "a", encoding="utf-8") as file:  # noqa: PTH123
            print(os.getpid(), event, *map(repr, arguments[:2]), file=file)


def _called_by(function: str) -> bool:
    frame = sys._getframe()
    while frame.f_back is not None and frame.f_code.co_name != function:
        frame = frame.f_back
    return frame.f_code.co_name == function


# First, so that what the other hook refuses is also in the file.
if os.environ.get("MEDSEG_TESTS_SOCKETS"):
    sys.addaudithook(_log)
if os.environ.get("MEDSEG_TESTS_OFFLINE") == "1":
    sys.addaudithook(_audit)
