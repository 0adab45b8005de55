"""The guard that keeps tests off the network, in this process and in processes that tests start."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

ELSEWHERE = "192.0.2.1"  # reserved for documentation, RFC 5737


def refused(code: str) -> bool:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.returncode != 0 and "NetworkAccess" in done.stderr


def test_this_process_cannot_connect_elsewhere():
    with socket.socket() as connection, pytest.raises(BaseException, match="must not connect"):
        connection.connect((ELSEWHERE, 80))


def test_a_child_process_cannot_connect_or_resolve():
    assert refused(f"import socket; socket.create_connection(({ELSEWHERE!r}, 80), timeout=1)")
    assert refused("import urllib.request; urllib.request.urlopen('http://example.invalid/')")


def test_this_machine_can_be_reached():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), timeout=5).close()
