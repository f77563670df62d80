"""What the server answers to: its own names alone, for pages and files as for the socket."""

import threading
import urllib.request
from pathlib import Path
from socket import IPPROTO_TCP, TCP_NODELAY, socket

import pytest
import streamlit as st
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from streamlit import config
from streamlit.web.server.app_discovery import discover_asgi_app

from app import guard
from app.routes import ROUTES, below


@pytest.fixture(scope="module")
def client():
    async def page(request):
        return PlainTextResponse("the page", headers={"X-Frame-Options": "ALLOWALL"})

    app = Starlette(routes=[Route("/{path:path}", page)], middleware=guard.GUARDS)
    return TestClient(app)


@pytest.fixture(autouse=True)
def _hosts():
    """As streamlit_config.toml has them."""
    before = config.get_option("server.allowedHosts")
    config.set_option("server.allowedHosts", ["localhost", "127.0.0.1"])
    yield
    config.set_option("server.allowedHosts", before)


@pytest.mark.parametrize("path", ["/", "/chat", "/app/static/plotly.min.js", "/_stcore/health", "/media/x.png"])
def test_every_path_has_its_host_checked_and_its_headers_told(client, path):
    for host in ("127.0.0.1:8501", "localhost", "LOCALHOST:1"):
        answer = client.get(path, headers={"host": host})
        assert answer.text == "the page"
        assert answer.headers["X-Frame-Options"] == "SAMEORIGIN"
        assert "img-src 'self' data: blob:;" in answer.headers["Content-Security-Policy"]
        assert "frame-ancestors 'self'" in answer.headers["Content-Security-Policy"]
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "127.0.0.1:99999", ""):
        refused = client.get(path, headers={"host": host})
        assert refused.status_code == 421
        assert "the page" not in refused.text


def test_other_sites_show_the_pages_in_a_frame_only_where_they_are_named():
    named = guard.headers_of("https://one.example https://two.example:8443")
    ancestors = "frame-ancestors 'self' https://one.example https://two.example:8443"
    assert named["Content-Security-Policy"].endswith(ancestors)
    # It can name no other site, and a browser that has it refuses all.
    assert "X-Frame-Options" not in named
    for wrong in ("*", "https://*", "http://one.example", "https://one.example;", "https://one.example/x", "'none'"):
        with pytest.raises(ValueError, match="write sites as https://NAME"):
            guard.headers_of(f"https://two.example {wrong}")


def test_the_server_finds_what_it_serves_with():
    """`streamlit run app/main.py` takes the guards only where it finds them in that file."""
    main = Path(guard.__file__).parent / "main.py"
    assert discover_asgi_app(main).import_string == "main:app"
    assert isinstance(st.App(main, middleware=guard.GUARDS), st.App)


@pytest.mark.parametrize("query", ["", "?lane=dense&lane=window%3Awindow%3D64&text=a%20b%26c", "?run=gallery:four"])
@pytest.mark.parametrize("path", ["", "/below/here"])
def test_the_first_page_is_found_by_its_name_and_keeps_what_the_link_says(path, query):
    client = TestClient(Starlette(routes=below(path)))
    answer = client.get(f"{path}/read{query}", follow_redirects=False)
    assert answer.is_redirect and str(answer.next_request.url) == str(client.base_url.join(f"{path}/{query}"))


@pytest.mark.parametrize(("path", "before"), [("", ""), ("sinkscope", "/sinkscope"), ("/a/b/", "/a/b")])
def test_what_the_app_serves_lies_below_the_path_of_its_pages(path, before):
    served = {route.path for route in below(path)}
    assert served == {f"{before}{route.path}" for route in ROUTES}
    assert f"{before}/feed/{{id}}" in served


def test_an_answer_goes_out_at_once():
    """Headers and content are two writes, and no second one waits until the first is acknowledged."""
    held = []

    async def page(request):
        held.append(request.receive.__self__.transport.get_extra_info("socket").getsockopt(IPPROTO_TCP, TCP_NODELAY))
        return PlainTextResponse("the page")

    app = Starlette(routes=[Route("/", page)], middleware=guard.GUARDS)
    with socket() as listening:
        # As Streamlit opens it.
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.setblocking(False)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
            with urllib.request.urlopen(address, timeout=10) as answer:
                assert answer.read() == b"the page"
        finally:
            server.should_exit = True
            thread.join()
    assert held and held[0]
