"""The server as it is started: what it answers to, and what it tells."""

import socket
import urllib.parse

import pytest

from .conftest import started


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


@pytest.mark.browser
@pytest.mark.parametrize("where", ["?lane=dense&lane={}", "?text={}", "?model={}", "chat?lane={}", "heads?bos={}"])
def test_a_picture_in_an_address_is_fetched_by_nobody(app, page, where):
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        elsewhere.settimeout(0)
        picture = f"![x](http://127.0.0.1:{elsewhere.getsockname()[1]}/x.png)"
        if "lane={}" in where:
            picture = f"duo:scores={picture}"
        page.goto(f"{app}/{where.format(urllib.parse.quote(picture))}")
        page.get_by_text("The address of this page asks for something that cannot be").first.wait_for()
        press = page.locator(".sk-go:visible")
        if press.count():
            press.first.click()
        page.wait_for_timeout(300)
        with pytest.raises(BlockingIOError):
            elsewhere.accept()
    assert page.locator("img[src*='x.png'], a[href*='x.png']").count() == 0
    assert page.get_by_text("Traceback").count() == 0


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


def test_a_server_that_does_not_come_up_is_a_failure_that_shows_its_log():
    with (
        pytest.raises(pytest.fail.Exception, match=r"(?s)ended with status 1; its log:.*encodings"),
        started(PYTHONHOME="/x"),
    ):
        pass
