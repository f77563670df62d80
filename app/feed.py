"""Feeds: the frames of a live run, which a browser asks for by itself.

A page's script says what is looked at.  The component on the page then asks for one frame after the other, and is
answered as soon as there is something new: no script runs for a frame.  No Streamlit in here.
"""

import asyncio
import secrets
import time
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar
from weakref import WeakValueDictionary, ref

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from analysis.runs.codec import Frame

from .jobs.base import Job

Kind = TypeVar("Kind", bound=Job)
PATH = "feed"
EVERY = 0.15
"""Seconds from one frame of a page to the next."""
EACH, STEP = 0.015, 5
"""Seconds of the server from one drawing to the next that are left to each page that watches a job, counted in steps of
so many pages, since the whole page runs again where its pace changes."""
WAIT = 1.0
"""Seconds that a request waits for something new: what is looked at is asked for as often, so that the job draws it."""
GLANCE = 0.03
"""Seconds from one look for something new to the next."""
NOTHING_MORE = Response(status_code=204)
"""The job is no longer in memory, or the page is closed: which is no error, and the script says what stands there."""


def paced(job: Job | None, every: float) -> float:
    """Seconds from one drawing of a page to the next: `every`, or more where many pages watch the job that it shows."""
    return every if job is None else max(every, EACH * (job.viewers // STEP * STEP))


class Shown(NamedTuple):
    """What a page looks at: a job, what of it, how a frame of that is made, and how often this has changed."""

    job: "ref[Any]"
    look: Hashable
    make: Callable[[Any], Frame]
    turn: int

    @property
    def tag(self) -> str:
        """What changes where there is something new; empty where the job is no longer kept."""
        return "" if (job := self.job()) is None else f'"{job.id}.{job.version}.{self.turn}"'


class Feed:
    """The frames of one page, as long as its session holds this."""

    def __init__(self) -> None:
        self.id = secrets.token_urlsafe(16)
        """Known to this page alone."""
        self._shown: Shown | None = None
        self._answered, self._wrong = 0.0, list[Exception]()
        self._sent: tuple[str, Frame] | None = None
        """What the page was sent last, and its tag."""
        FEEDS[self.id] = self

    def follow(self, job: Kind, look: Hashable, make: Callable[[Kind], Frame]) -> dict[str, str]:
        """Let frames be of this job from now on, and return what a component is told: their address below the app's.

        `make`: makes a frame, which depends on the job's version and on `look` alone.  Raises what the last frame
        raised while it was made.
        """
        if self._wrong:
            raise self._wrong.pop()
        before = self._shown
        if before is None or before.job() is not job or before.look != look:
            self._shown = Shown(ref(job), look, make, 0 if before is None else before.turn + 1)
        return {"feed": f"{PATH}/{self.id}?{job.id}"}

    async def answer(self, had: str) -> Response:
        """The newest frame, or what has changed of it; `had`: the tag of the one that the page shows.  Waits until
        there is another."""
        if (shown := self._shown) is not None and (job := shown.job()) is not None:
            await asyncio.sleep(self._answered + paced(job, EVERY) - time.monotonic())
            until = time.monotonic() + WAIT
            while shown.tag == had and time.monotonic() < until:
                await asyncio.sleep(GLANCE)
                shown = self._shown or shown
            self._answered = time.monotonic()
        # Once: the script may say at any moment that something else is looked at.
        shown = self._shown
        job = None if shown is None else shown.job()
        if shown is None or job is None or job.freed:
            return NOTHING_MORE
        tag, sent = shown.tag, self._sent
        known = sent[1] if sent is not None and sent[0] == had else None

        def made() -> tuple[Frame, bytes]:
            """The frame, and what is sent of it."""
            frame = shown.make(job)
            return frame, b"" if tag == had else frame.packed(known)

        try:
            frame, packed = await run_in_threadpool(made)
        except Exception as e:
            # The script says it: it is what has a place for it.
            self._wrong = [e]
            return PlainTextResponse("This frame could not be made.", status_code=500)
        if tag == had:
            return Response(status_code=304)
        self._sent = tag, frame
        # Not compressed: that takes longer than it saves, and whatever stands between can do it.
        headers = {"ETag": tag, "Cache-Control": "no-store", "Content-Encoding": "identity"}
        return Response(packed, media_type="application/octet-stream", headers=headers)


FEEDS = WeakValueDictionary[str, Feed]()
"""All feeds, by id."""


async def answer(request: Request) -> Response:
    """The next frame of a feed."""
    feed = FEEDS.get(request.path_params["id"])
    return NOTHING_MORE if feed is None else await feed.answer(request.headers.get("if-none-match", ""))


ROUTES = [Route(f"/{PATH}/{{id}}", answer)]
