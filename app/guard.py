"""What the server answers to, and what it tells browsers: Streamlit checks names for its socket alone.

A page of somebody else's may send a browser here under a name of its own (DNS rebinding), put this page into a frame,
or hope that a picture in some text is fetched.  Host names are those of `server.allowedHosts`; which sites may show the
pages in a frame is said by $SINKSCOPE_FRAMED_BY, and none may where it is not set.
"""

import asyncio
import os
import re
import socket
from contextlib import suppress

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit.web.server.starlette.starlette_websocket import is_host_allowed

POLICY = {
    "default-src": "'self'",
    # Streamlit makes modules of its components' scripts, and its page has a script in it.
    "script-src": "'self' 'unsafe-inline' blob:",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "font-src": "'self' data:",
    "media-src": "'self' data: blob:",
    "worker-src": "'self' blob:",
    "connect-src": "'self' data: blob:",
    "frame-src": "'self' data: blob:",
    "object-src": "'none'",
    "base-uri": "'self'",
    "form-action": "'self'",
}
"""From where a page may take what it needs: from here alone, whatever stands in a text."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
FRAMED_BY = "SINKSCOPE_FRAMED_BY"
SITE = re.compile(r"https://[a-z0-9.-]+(:\d+)?")

PRELOAD = "<app/static/plotly.min.js>; rel=preload; as=fetch; crossorigin"
"""What a browser fetches beside the first script of a page, and not when a plot asks for it."""


def headers_of(sites: str) -> dict[str, str]:
    """The headers of every answer where these sites, with spaces between them, may show the pages in a frame.

    Raises ValueError where one is not written as https://NAME.
    """
    for site in sites.split():
        if not SITE.fullmatch(site):
            raise ValueError(f"{FRAMED_BY} has {site!r}: write sites as https://NAME, with spaces between them")
    policy = POLICY | {"frame-ancestors": " ".join(("'self'", *sites.split()))}
    # X-Frame-Options, which old browsers have, can name no other site.
    framed = {} if sites.split() else {"X-Frame-Options": "SAMEORIGIN"}
    return (
        HEADERS | framed | {"Content-Security-Policy": "; ".join(f"{what} {where}" for what, where in policy.items())}
    )


class Guard:
    """Refuses requests under a foreign host name, puts headers on every answer, and lets it go out at once."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.headers = headers_of(os.environ.get(FRAMED_BY, ""))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request: with the app's answer and the headers, or with 421 under a foreign host name."""
        if scope["type"] != "http":
            # The socket is checked by Streamlit itself.
            await self.app(scope, receive, send)
            return
        undelay(receive)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self.headers.items():
                    headers[name] = value
                if headers.get("content-type", "").startswith("text/html"):
                    headers.append("Link", PRELOAD)
            await send(message)

        hosts = Headers(scope=scope).getlist("host")
        if len(hosts) == 1 and is_host_allowed(hosts[0]):
            await self.app(scope, receive, send_with_headers)
            return
        refusal = PlainTextResponse(
            "This server does not answer to that name: add it to STREAMLIT_SERVER_ALLOWED_HOSTS, or to "
            "server.allowedHosts in streamlit_config.toml.",
            status_code=421,
        )
        await refusal(scope, receive, send_with_headers)


def undelay(receive: Receive) -> None:
    """Let the answer go out at once: headers and content are written one after the other, and a socket without
    TCP_NODELAY keeps the content back until the headers are acknowledged, which takes 40 ms.

    Streamlit opens its sockets so that asyncio does not set it, and uvicorn tells an app of no socket but through what
    its `receive` belongs to.  Where that is something else nothing changes.
    """
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    if isinstance(transport, asyncio.BaseTransport) and (connection := transport.get_extra_info("socket")) is not None:
        # Of a connection that is closed nothing can be set.
        with suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


GUARDS = [Middleware(Guard)]
