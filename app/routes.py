"""What the server answers besides Streamlit's pages and files, below the same path as they."""

from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.routing import Route

from . import downloads, feed, recordings
from .pages import PAGES


def to_first_page(request: Request) -> RedirectResponse:
    """Send whoever asks for the first page by its name to its address, with all that the link says."""
    # Relative, since nobody here knows below which path a proxy has all this.
    return RedirectResponse(f"./?{query}" if (query := request.url.query) else "./")


FIRST = Route(f"/{next(iter(PAGES))}", to_first_page)
"""Streamlit gives its first page no other address than `/`, and says of this one that it does not exist."""
ROUTES = [*recordings.ROUTES, *feed.ROUTES, *downloads.ROUTES, FIRST]


def below(path: str) -> list[Route]:
    """The routes of an app that is served below this path (`server.baseUrlPath`); empty: below none."""
    return [Route(f"/{path.strip('/')}".rstrip("/") + route.path, route.endpoint) for route in ROUTES]
