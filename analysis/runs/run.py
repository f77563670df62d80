"""What the lanes of a run have learned so far, in memory: numbers that one thread appends and others read."""

import copy
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..policies import parse
from .facts import ModelFacts
from .spec import Spec

if TYPE_CHECKING:
    from ..engine.step import Step

ROLES = ("template", "user", "assistant")
"""Who said a token of a conversation."""


class NotFinite(ValueError):
    """Of a run in which a model gave a token no finite NLL: its files are whole, but it has no perplexity."""


class Column:
    """Numbers that one thread appends and others read: what `view` returns never changes."""

    def __init__(self, dtype: Any) -> None:
        self._data, self._count = np.empty(1024, dtype), 0

    def __len__(self) -> int:
        return self._count

    def view(self) -> NDArray:
        """What there is so far, [numbers]; later numbers do not change it."""
        return self._data[: self._count]

    def append(self, values: NDArray) -> None:
        """Add numbers at the end."""
        stop = self._count + len(values)
        if stop > len(self._data):
            grown = np.empty(stop * 2, self._data.dtype)
            grown[: self._count] = self.view()
            self._data = grown
        self._data[self._count : stop] = values
        self._count = stop

    def truncate(self, count: int) -> None:
        """Forget all but the first numbers.  What was returned before stays, since the rest is written anew."""
        if count < self._count:
            self._data, self._count = self._data[:count].copy(), count


def spent_on(step: "Step") -> NDArray[np.float64]:
    """Compute seconds of a step when each of its tokens was known, [tokens]."""
    return np.full(len(step.nll), step.seconds) if step.each is None else np.cumsum(step.each)


class Track:
    """What one lane has learned: a number for each predicted token, position 1 first."""

    def __init__(self) -> None:
        self.nll = Column(np.float32)
        self.cache_tokens = Column(np.int32)
        self.cache_bytes = Column(np.int64)
        self.seconds = Column(np.float64)
        """When each token was known, since the run began."""
        self.compute = Column(np.float64)
        """Compute seconds of the lane, summed up, when each token was known."""
        self.sums = Column(np.float64)
        """Sums of the first 0, 1, 2 … NLLs: means over any stretch are differences of these."""
        self.sums.append(np.zeros(1))
        self.token_ids = Column(np.int32)
        self.roles = Column(np.int8)
        """In a conversation, who said each token (ROLES)."""
        self.kl = Column(np.float32)
        """Where lanes are measured against the first one, KL(first ‖ this one) of each token in nats; NaN where the two
        did not read it together."""
        self.agree = Column(np.float32)
        """With it, whether both have the same most probable token: 1 or 0, or NaN."""
        self.spans: list[tuple[int, int]] = []
        self.sink_mass: list[NDArray[np.float32]] = []
        """Mean sink mass of each chunk, [layers, heads], beside its span."""
        self.output_error: list[NDArray[np.float32]] = []
        """Where lanes are measured against the first one, the relative error of each head's attention output over each
        chunk, [layers, heads] (engine/fidelity.py); NaN where the two did not read it together."""
        self.policies: list[tuple[int, str]] = []
        """From which position on the lane read under which policy."""

    def allocated(self, begin: int = 0) -> NDArray[np.int64]:
        """Slots that an engine hands out for what is cached, for the tokens from an index on, [tokens]; 0 where it does
        not hand them out in blocks."""
        tokens = self.cache_tokens.view()[: len(self.nll)]
        slots = np.zeros(len(tokens), np.int64)
        for (start, written), (stop, _) in pairwise([*self.policies, (len(tokens) + 1, "")]):
            policy, own = parse(written), slice(max(begin, start - 1), stop - 1)
            if policy.block > 1:
                sizes, which = np.unique(tokens[own], return_inverse=True)
                slots[own] = np.array([policy.allocated(int(held)) for held in sizes], np.int64)[which]
        return slots[begin:]

    @property
    def full_at(self) -> int | None:
        """How many tokens the lane had read when its cache was full, and tokens left as it read on; None where none has
        left so far, or the first ones by a switch, and where nothing is kept."""
        for (start, written), (stop, _) in pairwise([*self.policies, (len(self.nll) + 1, "")]):
            policy = parse(written)
            if policy.full_from is not None and policy.full_from < stop - 1:
                filled = policy.full_from >= start - 1 and policy.store != "recomputed"
                return policy.full_from if filled else None
        return None

    def rate(self, chunks: int) -> float:
        """Tokens predicted in a second of compute time, over so many of the newest chunks; NaN where that is not
        known."""
        if not (spans := self.spans[-chunks:]):
            return float("nan")
        compute, (start, _), (_, stop) = self.compute.view(), spans[0], spans[-1]
        before = compute[start - 2] if start > 1 else 0.0
        return float((stop - start) / max(compute[stop - 2] - before, 1e-9))

    def snapshot(self) -> "Track":
        """What is known now, which nothing that comes later changes."""
        twin = copy.copy(self)
        for name, known in vars(self).items():
            setattr(twin, name, copy.copy(known))
        return twin

    def truncate(self, position: int) -> None:
        """Forget what was learned of tokens at `position` and behind it, where a chunk begins."""
        count = position - 1
        for column in (self.nll, self.cache_tokens, self.cache_bytes, self.seconds, self.compute, self.token_ids):
            column.truncate(count)
        for column in (self.roles, self.kl, self.agree):
            column.truncate(count)
        self.sums.truncate(count + 1)
        kept = sum(stop <= position for _, stop in self.spans)
        del self.spans[kept:], self.sink_mass[kept:], self.output_error[kept:]
        self.policies = [(at, policy) for at, policy in self.policies if at < position]

    def append(self, step: "Step", seconds: float) -> None:
        """Take in a step that ended `seconds` after the run began."""
        spent = spent_on(step)
        compute = self.compute.view()[-1] if len(self.compute) else 0.0
        if not self.policies or self.policies[-1][1] != str(step.policy):
            self.policies.append((step.start, str(step.policy)))
        self.token_ids.append(step.token_ids)
        for name in ("roles", "kl", "agree"):
            if (known := getattr(step, name)) is not None:
                getattr(self, name).append(known)
        self.cache_tokens.append(step.cache_tokens)
        self.cache_bytes.append(step.cache_bytes)
        self.seconds.append(seconds - step.seconds + spent)
        self.compute.append(compute + spent)
        self.sums.append(self.sums.view()[-1] + np.cumsum(step.nll, dtype=np.float64))
        # Last, since readers take the length of these for the length of all.
        self.sink_mass.append(step.sink_mass.mean(-1, dtype=np.float32))
        if step.output_error is not None:
            self.output_error.append(step.output_error)
        self.spans.append((step.start, step.stop))
        self.nll.append(step.nll)


class Run:
    """A Spec, what its lanes have learned so far, and what happened meanwhile."""

    def __init__(self, spec: Spec, first_token: int | None = None) -> None:
        self.spec = spec
        self.first_token = first_token
        self.begins: str | None = None
        """The BOS that the text really begins with, empty where it has none; None where nobody knows."""
        self.as_text: tuple[str, ...] = ()
        """Names of control tokens that stand in the text, and were read as text."""
        self.model: ModelFacts | None = None
        """What is known of the model; None before it is loaded, and in folders of older versions."""
        self.pieces: list[list[str]] = [[] for _ in spec.policies]
        """The text of each token, a list for each lane; empty in folders of older versions."""
        self.first_role = 0
        self.tracks = [Track() for _ in spec.policies]
        self.events: list[dict[str, Any]] = []
        self.status = ""
        """How a run that was read from a folder ended; running, where it still does."""
        self.began = time.perf_counter()
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        """When the run began, whenever it is saved."""

    def go_on(self, compute: Sequence[float]) -> None:
        """Count seconds from the last that is known, and the compute seconds of each lane from those that it has
        had."""
        known = [track.seconds.view()[-1] for track in self.tracks if len(track.seconds)]
        self.began = time.perf_counter() - max([*known, *(event["seconds"] for event in self.events)], default=0.0)
        for track, seconds in zip(self.tracks, compute, strict=True):
            if count := len(track.nll):
                # When the earlier tokens were known is not in the record.
                track.compute.truncate(0)
                track.compute.append(np.r_[np.full(count - 1, np.nan), seconds])

    @property
    def kind(self) -> str:
        """Whether this is a reading or a chat, as a run folder says it."""
        return "reading" if self.spec.sampling is None else "chat"

    @property
    def switches(self) -> list[dict[str, Any]]:
        """Events that say which lane went on under which policy, and from where: what others wrote into a run folder
        may say less of a switch."""
        of = ("lane", "position", "policy")
        return [e for e in list(self.events) if e["what"] == "switch" and None not in map(e.get, of)]

    def take_pieces(self, lane: int, start: int, pieces: Sequence[str]) -> None:
        """Take in the texts of a lane's tokens from position `start` on; lane −1: of all lanes.

        Raises ValueError where texts of earlier tokens are missing.
        """
        for known in self.pieces if lane < 0 else [self.pieces[lane]]:
            if start > len(known):
                raise ValueError(f"texts of tokens begin at {start:,}, and those before {len(known):,} are known")
            known[start : start + len(pieces)] = pieces

    def append(self, step: "Step", seconds: float | None = None) -> float:
        """Take in a step that has just been made; one that is made again takes the place of all from there on.

        `seconds`: when that was, since the run began; None: now.  Returns it.
        """
        seconds = time.perf_counter() - self.began if seconds is None else seconds
        track = self.tracks[step.lane]
        if step.start <= len(track.nll):
            track.truncate(step.start)
        track.append(step, seconds)
        return seconds

    def event(self, what: str, *, lane: int | None = None, position: int | None = None, **more: Any) -> dict[str, Any]:
        """Note that something happened: a switch, a pause, a warning."""
        seconds = round(time.perf_counter() - self.began, 3)
        entry = {"what": what, "lane": lane, "position": position, "seconds": seconds, **more}
        self.events.append(entry)
        return entry
