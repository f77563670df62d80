"""The server as it is started: what it answers to, and what it tells."""

import socket
import urllib.parse

import pytest


def asked(app: str, path: str, host: str, *more: str) -> tuple[int, str]:
    """Status and headers of an answer: written by hand, since clients would mend the host."""
    place = urllib.parse.urlsplit(app)
    with socket.create_connection((place.hostname, place.port), timeout=10) as s:
        lines = (f"GET {path} HTTP/1.1", f"Host: {host}", *(more or ("Connection: close",)))
        s.sendall("".join(f"{line}\r\n" for line in (*lines, "")).encode())
        answer = b""
        while b"\r\n\r\n" not in answer and (part := s.recv(65536)):
            answer += part
    head = answer.decode("latin-1").partition("\r\n\r\n")[0]
    return int(head.split()[1]), head.lower()


@pytest.mark.parametrize("path", ["/", "/chat", "/_stcore/health", "/static/js/x.js", "/app/static/plotly.min.js"])
def test_pages_and_files_are_refused_under_a_foreign_name(app, path):
    own = app.removeprefix("http://")
    status, head = asked(app, path, own)
    assert status in (200, 404)
    assert "x-frame-options: sameorigin" in head
    assert "content-security-policy: default-src 'self'" in head
    assert asked(app, path, "evil.example")[0] == 421


def test_the_socket_is_refused_under_a_foreign_name(app):
    upgrade = (
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        "Sec-WebSocket-Key: x3JJHMbDL1EzLkh9GBhXDw==",
    )
    own = app.removeprefix("http://")
    assert asked(app, "/_stcore/stream", own, *upgrade)[0] == 101
    assert asked(app, "/_stcore/stream", "evil.example", *upgrade)[0] == 403
