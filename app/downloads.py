"""Downloads: files that a person takes away from a page, made when they are asked for.

The address of a file is the same as long as its page is open.  Streamlit's own buttons name a file of one run of the
script, which the server drops where a part of the page is drawn again before the browser asks for it: then a press
finds nothing.
"""

import secrets
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import quote
from weakref import WeakValueDictionary

import streamlit as st
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from analysis.errors import error_message, log

PATH = "download"
NOT_OFFERED = "This file is no longer offered: go back to its page, load it anew, and press again."


def download(
    label: str,
    name: str,
    make: Callable[[], bytes | str],
    media_type: str = "text/csv",
    *,
    icon: str | None = ":material/download:",
    primary: bool = False,
    help: str | None = None,
) -> None:
    """What takes away a file when it is pressed; `name`: of the file, unlike all others on the page.

    `make`: makes it then, in another thread, and raises ValueError where it cannot be made.
    """
    state = st.session_state
    if "downloads" not in state:
        state.downloads = Downloads()
    at = state.downloads.offer(state.get("page", ""), name, Offer(make, media_type))
    st.link_button(label, at, type="primary" if primary else "secondary", icon=icon, help=help)


class Offer(NamedTuple):
    """A file that can be taken away: what makes it, and its media type."""

    make: Callable[[], bytes | str]
    media_type: str


class Downloads:
    """What the page of one tab offers, as long as its session holds this."""

    def __init__(self) -> None:
        self.id = secrets.token_urlsafe(16)
        """Known to this tab alone."""
        self._page, self._offers = "", dict[str, Offer]()
        DOWNLOADS[self.id] = self

    def offer(self, page: str, name: str, offer: Offer) -> str:
        """Offer a file of a page from now on, in place of an earlier one of its name, and no file of another page;
        returns its address below the app's."""
        if page != self._page:
            # They hold what they are made of in memory.
            self._page, self._offers = page, {}
        self._offers[name] = offer
        return f"{PATH}/{self.id}/{quote(name, safe='')}"

    def made(self, name: str) -> Response:
        """The file of this name, or a sentence that says why there is none."""
        if (offer := self._offers.get(name)) is None:
            return PlainTextResponse(NOT_OFFERED, status_code=410)
        try:
            data = offer.make()
        except Exception as e:
            # Of any kind: whoever pressed is shown this answer.
            log(e, f"download {name}")
            return PlainTextResponse(error_message(e, f"download {name}", "press again"), status_code=500)
        attached = f"attachment; filename*=UTF-8''{quote(name, safe='')}"
        headers = {"Content-Disposition": attached, "Cache-Control": "no-store"}
        return Response(data, media_type=offer.media_type, headers=headers)


DOWNLOADS = WeakValueDictionary[str, Downloads]()
"""What all tabs offer, by id."""


def answer(request: Request) -> Response:
    """The file that is asked for.  Starlette has it made in another thread, since this is no coroutine."""
    downloads = DOWNLOADS.get(request.path_params["id"])
    if downloads is None:
        return PlainTextResponse(NOT_OFFERED, status_code=410)
    return downloads.made(request.path_params["name"])


ROUTES = [Route(f"/{PATH}/{{id}}/{{name:path}}", answer)]
