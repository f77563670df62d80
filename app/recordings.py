"""Recordings: runs of the library and stories of the gallery that pages show, and their bytes, which the server makes
once for all who ask.

A page tells the browser where a recording lies, and the browser fetches it by itself.  No Streamlit in here.
"""

from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from analysis.errors import sentence
from analysis.runs import library
from analysis.runs.reader import about_of, spec_of
from analysis.runs.recording import recording
from analysis.runs.spec import Spec

PATH = "recordings"
STORY = "gallery:"
"""What the name of a story of the gallery begins with; no run of the library can have such a name."""


def address_of(name: str) -> str:
    """Where the recording of this name lies, below the address of the app; another one when it has grown.

    Raises ValueError where there is none.
    """
    return f"{PATH}/{quote(name, safe='')}?{_changed(_folder(name))}"


def _folder(name: str) -> Path:
    """The folder of a run of the library, or of a story of the gallery.  Raises ValueError where there is none."""
    if name.startswith(STORY):
        return library.find(name.removeprefix(STORY), library.GALLERY)
    return library.find(name)


def answer(request: Request) -> Response:
    """The recording that is asked for, or a sentence that says why there is none."""
    try:
        path = _folder(request.path_params["name"])
        data = _made(path, _changed(path))
    except ValueError as e:
        return PlainTextResponse(sentence(e), status_code=404)
    headers = {"Content-Encoding": "gzip", "Cache-Control": "private, max-age=86400"}
    return Response(data, media_type="application/octet-stream", headers=headers)


@lru_cache(maxsize=4)
def _made(path: Path, changed: int) -> bytes:
    return recording(path)


def _changed(path: Path) -> int:
    """When anything of a folder was written last, in nanoseconds."""
    with suppress(OSError):
        return max((f.stat().st_mtime_ns for f in path.iterdir() if f.is_file()), default=0)
    return 0


ROUTES = [Route(f"/{PATH}/{{name}}", answer)]


@dataclass(frozen=True)
class Recording:
    """A run that a page shows: its name in an address, what it was asked, and the SHA-256 of its text."""

    name: str
    spec: Spec
    status: str
    """How it ended; running, where somebody writes it at this moment."""
    text_sha256: str = ""

    @property
    def goes_on(self) -> bool:
        """Whether it stopped before its end, so that it can go on."""
        return self.status in ("interrupted", "failed", "killed")

    @property
    def story(self) -> bool:
        """Whether it comes with the project."""
        return self.name.startswith(STORY)


def find(name: str | None, kind: str) -> Recording | None:
    """The run of this name; None where there is none, or one of another kind, or it is damaged."""
    try:
        path = _folder(name or "")
        about = about_of(path)
        spec = spec_of(path)
    except ValueError:
        return None
    usual = "reading" if spec.sampling is None else "chat"
    sha256 = str(about.get("text_sha256") or "")
    return Recording(name or "", spec, about.get("status", ""), sha256) if about.get("kind", usual) == kind else None
