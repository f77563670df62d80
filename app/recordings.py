"""Recordings: runs of the library and stories of the gallery that pages show, and their bytes, which the server makes
once for all who ask; and results, which are tables and need no player.

A page tells the browser where a recording lies, and the browser fetches it by itself.  No Streamlit in here.
"""

import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from analysis import files, texts
from analysis.errors import sentence
from analysis.runs import library
from analysis.runs.about import about_of, spec_of
from analysis.runs.facts import ModelFacts
from analysis.runs.recording import recording
from analysis.runs.spec import Spec
from analysis.runs.status import CAPTURING, STOPPED

from . import address

PATH = "recordings"
STORY = "gallery:"
"""What the name of a story of the gallery begins with; no run of the library can have such a name."""
FIRST = f"{STORY}four"
"""The story that a fresh start opens with."""


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


def prepare(name: str) -> None:
    """Make the bytes of a recording before a browser asks for them, if there is one."""
    with suppress(ValueError):
        path = _folder(name)
        _made(path, _changed(path))


@lru_cache(maxsize=4)
def _made(path: Path, changed: int) -> bytes:
    return recording(path)


def _changed(path: Path) -> int:
    """A number that is another one as soon as any file of a folder is another."""
    with suppress(OSError):
        # Not the newest moment alone: the clock may have been ahead when a file was written that stays as it is.
        held = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in path.iterdir() if f.is_file()]
        return zlib.crc32(repr(sorted(held)).encode())
    return 0


ROUTES = [Route(f"/{PATH}/{{name}}", answer)]


@dataclass(frozen=True)
class Recording:
    """A run that a page shows: its name in an address, what it was asked, and the SHA-256 of its text."""

    id: str
    spec: Spec
    status: str
    """How it ended; running, where somebody writes it at this moment."""
    text_sha256: str = ""
    facts: ModelFacts | None = None
    """What is known of its model."""

    @property
    def goes_on(self) -> bool:
        """Whether it stopped before its end, so that it can go on."""
        return self.status in STOPPED

    @property
    def story(self) -> bool:
        """Whether it comes with the project."""
        return self.id.startswith(STORY)


def find(name: str | None, kind: str) -> Recording | None:
    """The run of this name; None where there is none, or one of another kind, or it is damaged."""
    try:
        path = _folder(name or "")
        about = about_of(path)
        spec = spec_of(path)
    except ValueError:
        return None
    usual, facts = "reading" if spec.sampling is None else "chat", None
    if about.get("kind", usual) != kind:
        return None
    with suppress(ValueError):
        # One that nobody can read is played all the same.
        facts = msgspec.convert(about.get("model"), ModelFacts | None)
    return Recording(name or "", spec, about.get("status", ""), str(about.get("text_sha256") or ""), facts)


@dataclass(frozen=True)
class Result:
    """What the library keeps of work that is no run: `about` is what its folder says of itself."""

    path: Path
    kind: str
    spec: Spec
    about: Mapping[str, Any]

    @property
    def id(self) -> str:
        """Its name in an address."""
        return self.path.name

    @property
    def settings(self) -> Mapping[str, Any]:
        """What it was asked besides its Spec."""
        return self.about.get("settings") or {}

    @property
    def goes_on(self) -> bool:
        """Whether it stopped before its end, so that what is missing can be computed."""
        return self.about.get("status") in STOPPED

    @property
    def text_sha256(self) -> str:
        """Of the text."""
        return str(self.about.get("text_sha256") or "")

    @property
    def facts(self) -> ModelFacts | None:
        """What is known of the model."""
        return msgspec.convert(self.about.get("model"), ModelFacts | None)

    @property
    def title(self) -> str:
        """What its text is called."""
        return texts.titled(self.spec.text)

    @property
    def begins(self) -> str:
        """How the text begins, such as "with <bos>"; empty where nobody knows."""
        return texts.with_bos(str(begins)) if (begins := self.about.get("begins")) is not None else ""

    @property
    def text_note(self) -> str:
        """A sentence about control tokens in the text, where there is one to say."""
        return texts.said_as_text(tuple(self.about.get("as_text") or ()), "in the text")


def result(name: str | None, *kinds: str) -> Result | None:
    """What the library has of this name, of one of these kinds; None where there is none, or it is damaged."""
    try:
        found = library.entry(name or "")
        if found.problem or found.kind not in kinds:
            return None
        if found.kind == "capture" and not (found.path / "run.json").exists():
            # One that a command made, or that has not ended.
            ended = (found.path / "stretch.json").exists()
            about = files.record(found.path / ("stretch.json" if ended else CAPTURING), dict[str, Any], "of a stretch")
        else:
            about = about_of(found.path)
        spec = msgspec.convert(about["spec"], Spec)
        for written in spec.policies:
            # It may be from other hands, and no page reads a file that a policy names.
            address.policy(written)
        return Result(found.path, found.kind, spec, about)
    except (ValueError, KeyError):
        return None
