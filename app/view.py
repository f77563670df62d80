"""What one person has chosen to look at, and how a page's address says it, so that a reload shows the same.

An address says only what differs from what the lanes mean to show.  No Streamlit in here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from analysis.experiments.presets import reference_of
from analysis.runs.screen import COMPARED, GRIDS, MODES, PAINTS, STRIP
from analysis.texts import checked

from .address import number, one, several
from .parameters import MOST_TOKENS

HEAD = several("head", 2, 9999, "layer.head, such as 20.3")
"""How addresses name a head."""
MARK = several("mark", 2, MOST_TOKENS, "first.end in tokens, such as 120.135")
"""How addresses name a stretch of tokens that is marked: its first token, and the one behind its last."""
PARAMETERS = ("mode", "paint", "grid", "reference", "shown", "head", "mark")
"""What the address of a page that reads says of its view."""
CHAT_PARAMETERS = ("shown", "head", "token")
"""What the address of a conversation says of its view."""


@dataclass
class View:
    """What is on screen of a run: the curve, what colours the text, the lane that all are compared with, the lane whose
    heads, map and text are shown, and a head (layer, head); `lanes`: those that these numbers are of; `grid`: what is
    shown of every head; `mark`: first token and end of a stretch of the text that is marked."""

    mode: str = "relative"
    paint: str = "nll"
    reference: int = 0
    chosen: int = 0
    head: tuple[int, int] | None = None
    lanes: tuple[str, ...] = ()
    grid: str = "sink mass"
    mark: tuple[int, int] | None = None

    @classmethod
    def of(cls, lanes: Sequence[str], asked: Mapping[str, str] | None = None) -> Self:
        """What these lanes mean to show, but for what an address asks.  Raises ValueError for what cannot be."""
        asked = asked or {}
        reference = _lane("reference", asked, lanes, reference_of(lanes))
        view = cls(
            checked("mode", asked.get("mode", "relative"), MODES),
            checked("paint", asked.get("paint", "nll"), PAINTS),
            reference,
            _lane("shown", asked, lanes, reference),
            _head(asked),
            tuple(lanes),
            checked("grid", asked.get("grid", "sink mass"), GRIDS),
            _mark(asked),
        )
        return view.possible()

    @classmethod
    def linked(cls, lanes: Sequence[str], asked: Mapping[str, str]) -> tuple[Self, list[str]]:
        """What an address asks of these lanes, and what is wrong with the rest of it."""
        right, problems = _possible(lambda one: cls.of(lanes, one), PARAMETERS, asked)
        view = cls.of(lanes, right)
        if right.get("paint", view.paint) != view.paint:
            problems.append("paint is attention, and no head is named whose attention it is")
        if right.get("mode", view.mode) != view.mode:
            problems.append(f"mode is {right['mode']}, which compares lanes, and there is one")
        return view, problems

    def follow(self, lanes: Sequence[str]) -> None:
        """Let this be of other lanes: each of its lanes goes where it went, or gives way to what the lanes mean."""
        lanes, before = tuple(lanes), self.lanes
        if lanes == before:
            return

        def moved(index: int, meant: int) -> int:
            if index < min(len(before), len(lanes)) and before[index] == lanes[index]:
                return index
            if index < len(before) and before[index] in lanes:
                return lanes.index(before[index])
            # As many as there were: this one was edited.
            return index if len(before) == len(lanes) else meant

        self.reference = moved(self.reference, reference_of(lanes))
        self.chosen = moved(self.chosen, self.reference)
        if len(before) == 1 and self.mode == "rolling":
            # That was because there was nothing to compare.
            self.mode = "relative"
        self.lanes = lanes
        self.possible()

    def look(self, pick: Mapping[str, Any], lanes: int) -> None:
        """Take up what a browser says that a person looks at, as far as it can be, of so many lanes."""
        for name in ("chosen", "reference"):
            if isinstance(lane := pick.get(name), int) and 0 <= lane < lanes:
                setattr(self, name, lane)
        if "head" in pick:
            self.head = (int(pick["head"][0]), int(pick["head"][1])) if pick["head"] else None
        for name, choices in (("mode", MODES), ("paint", PAINTS), ("grid", GRIDS)):
            if pick.get(name) in choices:
                setattr(self, name, pick[name])
        self.possible()

    def possible(self) -> Self:
        """The same, since one lane alone has none to be compared with, and a text is not coloured by no head."""
        if len(self.lanes) == 1 and self.mode in COMPARED:
            self.mode = "rolling"
        if self.head is None:
            self.paint = "nll"
        return self

    def shown(self) -> dict[str, Any]:
        """What a script needs to show the same."""
        return {name: of for name, of in asdict(self).items() if name != "lanes"}

    def link(self) -> dict[str, str]:
        """What an address says of this."""
        meant = View.of(self.lanes)
        names = "mode", "paint", "grid"
        said = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(meant, name)}
        if self.reference != meant.reference:
            said["reference"] = str(self.reference)
        if self.chosen != self.reference:
            said["shown"] = str(self.chosen)
        if self.mark is not None:
            said["mark"] = MARK.write(self.mark)
        return said | _said(self.head)


@dataclass
class ChatView:
    """What is on screen of a conversation: a lane, a head (layer, head), and a token of a lane."""

    chosen: int = 0
    head: tuple[int, int] | None = None
    token: tuple[int, int] | None = None

    @classmethod
    def of(cls, lanes: Sequence[str], asked: Mapping[str, str]) -> Self:
        """What an address asks.  Raises ValueError for what cannot be."""
        view = cls(_lane("shown", asked, lanes, 0), _head(asked))
        if "token" in asked:
            view.token = view.chosen, number("token", asked["token"], 0, 2**31 - 1)
        return view

    @classmethod
    def linked(cls, lanes: Sequence[str], asked: Mapping[str, str]) -> tuple[Self, list[str]]:
        """What an address asks of these lanes, and what is wrong with the rest of it."""
        right, problems = _possible(lambda one: cls.of(lanes, one), CHAT_PARAMETERS, asked)
        return cls.of(lanes, right), problems

    def look(self, pick: Mapping[str, Any], lanes: int) -> None:
        """Take up what a browser says that a person looks at in a recording, as far as it can be, of so many lanes."""
        if isinstance(lane := pick.get("chosen"), int) and 0 <= lane < lanes:
            self.chosen = lane
        self.head = (int(pick["head"][0]), int(pick["head"][1])) if pick.get("head") else None
        token = pick.get("token")
        self.token = (int(token[0]), int(token[1])) if token and 0 <= token[0] < lanes else None

    def shown(self) -> dict[str, Any]:
        """What a script needs to show the same."""
        return asdict(self)

    def link(self) -> dict[str, str]:
        """What an address says of this."""
        said = {"shown": str(self.chosen)} if self.chosen else {}
        if self.token is not None and self.token[0] == self.chosen:
            said["token"] = str(self.token[1])
        return said | _said(self.head)


def _possible(
    view: Callable[[dict[str, str]], object], names: Sequence[str], asked: Mapping[str, str]
) -> tuple[dict[str, str], list[str]]:
    """What of an address a view can be made of, and what is wrong with the rest."""
    right, problems = {}, []
    for name in names:
        try:
            if name in asked:
                written = one(asked, name)
                view({name: written})
                right[name] = written
        except ValueError as e:
            problems.append(str(e))
    return right, problems


def _said(head: tuple[int, int] | None) -> dict[str, str]:
    return {} if head is None else {"head": HEAD.write(head)}


def _head(asked: Mapping[str, str]) -> tuple[int, int] | None:
    if "head" not in asked:
        return None
    return HEAD.read(asked["head"])


def _mark(asked: Mapping[str, str]) -> tuple[int, int] | None:
    if "mark" not in asked:
        return None
    first, end = MARK.read(asked["mark"])
    if not first < end <= first + STRIP:
        raise ValueError(f"mark must be 1 to {STRIP} tokens long, not {end - first:,}")
    return first, end


def _lane(name: str, asked: Mapping[str, str], lanes: Sequence[str], usual: int) -> int:
    return number(name, asked[name], 0, len(lanes) - 1) if name in asked else usual
