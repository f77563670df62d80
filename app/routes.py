"""What the server answers besides Streamlit's pages and files, below the same path as they."""

from starlette.routing import Route

from . import downloads, feed, recordings

ROUTES = [*recordings.ROUTES, *feed.ROUTES, *downloads.ROUTES]


def below(path: str) -> list[Route]:
    """The routes of an app that is served below this path (`server.baseUrlPath`); empty: below none."""
    return [Route(f"/{path.strip('/')}".rstrip("/") + route.path, route.endpoint) for route in ROUTES]
