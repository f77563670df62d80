"""What the server answers to, and what it tells browsers: Streamlit checks names for its socket alone.

A page of somebody else's may send a browser here under a name of its own (DNS rebinding), put this page into a frame,
or hope that a picture in some text is fetched.  Host names are those of `server.allowedHosts`.
"""

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
    "frame-ancestors": "'self'",
}
"""From where a page may take what it needs: from here alone, whatever stands in a text."""
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{what} {where}" for what, where in POLICY.items()),
    "X-Frame-Options": "SAMEORIGIN",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}

PRELOAD = "<app/static/plotly.min.js>; rel=preload; as=fetch; crossorigin"
"""What a browser fetches beside the first script of a page, and not when a plot asks for it."""


class Guard:
    """Refuses requests under a foreign host name, and puts headers on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request: with the app's answer and the headers, or with 421 under a foreign host name."""
        if scope["type"] != "http":
            # The socket is checked by Streamlit itself.
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                if headers.get("content-type", "").startswith("text/html"):
                    headers.append("Link", PRELOAD)
            await send(message)

        hosts = Headers(scope=scope).getlist("host")
        if len(hosts) == 1 and is_host_allowed(hosts[0]):
            await self.app(scope, receive, send_with_headers)
            return
        refusal = PlainTextResponse(
            "This server does not answer to that name: add it to server.allowedHosts in streamlit_config.toml.",
            status_code=421,
        )
        await refusal(scope, receive, send_with_headers)


GUARDS = [Middleware(Guard)]
