"""A captured stretch of text: what every head asked with and answered to, on disk, for maps that no memory would hold.

Queries and keys before rotation are all that a map needs (atlas.py), so a stretch grows with its length and never with
its square.  Beside them stand a few numbers of every token that would be lost otherwise: norms of keys, values and
hidden states, and the largest activations.
"""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import files, metrics, texts
from ..engine.attention.band import Band
from ..engine.attention.banded import BandedPass
from ..engine.stream import CHUNK, open_lanes
from ..models.language_model import LanguageModel
from ..policies import Policy, parse
from ..runs.spec import Spec
from ..runs.status import RUNNING, here, status_of
from ..texts import Text, Tokenized

LONGEST = 65_536
"""Tokens that a stretch may have."""
POSITIONS = ("text", "cache", "none", "naive")
"""How distances to sinks may be counted."""
UNDER_WAY = ".capturing"
"""Says which process captures into a folder."""
SIZES = "sizes.npy.part"
FILES = ("queries.npy", "keys.npy", "norms.npy", "token_ids.npy", "massive.npy", "mass.npy", "median.npy", SIZES)
TOP = 3
"""Largest activations that are kept of each layer."""


@dataclass(frozen=True)
class Segment:
    """Queries start … stop − 1 of a stretch, which all reach by one rule."""

    start: int
    stop: int
    policy: str
    reach: Band
    length: int = 1
    """Of the context for which rotations were chosen (frequencies.py)."""

    def __post_init__(self) -> None:
        parse(self.policy)
        if not 0 <= self.start < self.stop:
            raise ValueError(f"a segment from token {self.start} to {self.stop} has no tokens")
        reach = self.reach
        if min(reach.sinks, reach.first, 0 if reach.window is None else reach.window) < 0:
            raise ValueError(f"a reach has no numbers below 0, and this is {reach}")
        if reach.positions not in POSITIONS:
            raise ValueError(f"positions are one of {', '.join(POSITIONS)}, not {reach.positions!r}")
        if self.length < 1:
            raise ValueError(f"a context has at least 1 token, not {self.length}")


@dataclass
class _About:
    """What stretch.json must say."""

    spec: Spec
    segments: list[Segment]
    weights_sha256: str
    text_sha256: str = ""
    begins: str | None = None
    as_text: tuple[str, ...] = ()


class Stretch:
    """A captured stretch: text positions 0 … tokens − 1, read by one lane.

    `queries` [layers, heads, tokens, dim] and `keys` [layers, kv_heads, tokens, dim] before rotation; `mass` [layers,
    heads]: mean attention to the first four tokens; `norms` [kinds, layers, tokens] of NORMS, means over heads;
    `massive` [layers, TOP, 3]: size, token and channel of the largest activations, `median` [layers]: of |h| over all
    tokens and channels of what comes out of a layer.  All float32, the large ones mapped from disk.
    """

    NORMS = ("key", "value", "hidden")

    def __init__(self, path: Path) -> None:
        """Raises ValueError where there is no stretch, or a file of it is damaged or of another."""
        self.path = Path(path)
        file = self.path / "stretch.json"
        if not os.path.exists(file):
            raise ValueError(f"{path} holds no captured stretch: it has no readable stretch.json")
        about = files.record(file, _About, "that of a captured stretch")
        self.about = files.record(file, dict[str, Any], "that of a captured stretch")
        self.spec, self.segments = about.spec, about.segments
        if sum(s.stop - s.start for s in self.segments) < 1:
            raise ValueError(f"{file} is not that of a captured stretch: it has no tokens")
        count = self.segments[-1].stop
        if [s.start for s in self.segments] != [0, *(s.stop for s in self.segments[:-1])]:
            raise ValueError(f"{file} is not that of a captured stretch: its segments do not follow each other")
        self.token_ids = self._array("token_ids", "iu", count + 1)
        self.queries = self._array("queries", "f", None, None, count, None)
        layers, heads, _, dim = self.queries.shape
        self.keys = self._array("keys", "f", layers, None, count, dim)
        if not self.keys.shape[1] or heads % self.keys.shape[1]:
            raise ValueError(f"{path} has {heads} query heads and {self.keys.shape[1]} KV heads: a file is damaged")
        self.norms = self._array("norms", "f", len(self.NORMS), layers, count)
        self.massive = self._array("massive", "f", layers, None, 3)
        self.median, self.mass = self._array("median", "f", layers), self._array("mass", "f", layers, heads)

    def _array(self, name: str, numbers: str, *shape: int | None) -> NDArray:
        mapped = name in ("queries", "keys", "norms")
        return files.array(self.path / f"{name}.npy", files.Kind(numbers, shape), mapped=mapped)

    @property
    def tokens(self) -> int:
        return self.queries.shape[2]

    @property
    def layers(self) -> int:
        return self.queries.shape[0]

    @property
    def heads(self) -> int:
        return self.queries.shape[1]


def tokenized(text: Text, tokenizer, spec: Spec) -> Tokenized:
    """A text as a stretch of `spec.tokens` tokens reads it (of all that it has, where those are fewer).

    There is one token more, which is only predicted; where the text has no more, its last one stands in for it.
    """
    limit = None if spec.tokens is None else spec.tokens + 1
    read = texts.tokenized(text, tokenizer, bos=spec.bos, special=spec.special, limit=limit)
    return read if len(read.ids) == limit else replace(read, ids=np.append(read.ids, read.ids[-1:]))


def needed(layers: int, heads: int, kv_heads: int, dim: int, tokens: int) -> int:
    """Bytes on disk of a stretch."""
    return 4 * layers * tokens * ((heads + kv_heads) * dim + len(Stretch.NORMS))


def needed_meanwhile(layers: int, width: int, tokens: int) -> int:
    """Bytes on disk that a capture takes besides, until it has ended: the sizes of all hidden states."""
    return 4 * layers * tokens * width


def capture(
    model: LanguageModel,
    tokens: NDArray[np.int32],
    spec: Spec,
    path: Path,
    *,
    switches: Sequence[tuple[int, Policy]] = (),
    text_sha256: str = "",
    read: Tokenized | None = None,
    chunk: int = CHUNK,
) -> Iterator[int]:
    """Read a text under the first policy of `spec` and keep it in a folder; yields how many tokens have been read.

    `switches`: from which position on the lane reads under which other policy; sinks that it lacks are pinned again.
    `read`: how the text became these tokens, to be told of it.
    When it has ended, `Stretch(path)` opens it.  Raises ValueError where the policy does not keep by place, where the
    text is longer than LONGEST, where pinned sinks would not be the keys that were captured, where the folder holds
    something already, or where the disk has no room; a capture that does not end leaves nothing.
    """
    policies = [parse(spec.policies[0]), *(policy for _, policy in switches)]
    for policy in policies:
        if not policy.capturable or policy.first != "own":
            raise ValueError(
                f"{policy.label}: a stretch is captured under dense, window or sinks + window, and with the text's own "
                "first tokens: choose one of these"
            )
    for i, policy in enumerate(policies[1:], 1):
        if any(_reads_otherwise(before, policy) for before in policies[:i]):
            raise ValueError(
                f"{policy.label}: its first {policy.sinks} tokens would be read again in another way than they were "
                "captured: begin with a longer window, and with the what-ifs that are to come"
            )
    count = len(tokens) - 1
    if count > LONGEST:
        raise ValueError(f"a stretch has at most {LONGEST:,} tokens, and this would have {count:,}: read fewer tokens")
    if (path / "stretch.json").exists():
        raise ValueError(f"{path} holds a stretch already: choose another folder")
    lane = open_lanes(model.adapted, tokens, policies[:1])[0]
    adapted = model.adapted
    width = adapted.network.config.get_text_config(decoder=True).hidden_size
    size = needed(adapted.layers, adapted.heads, adapted.kv_heads, adapted.head_dim, count)
    files.check_room(path, size + needed_meanwhile(adapted.layers, width, count), "this stretch")
    _clear(path)
    files.new_folder(path)
    ended = False
    try:
        files.write(path / UNDER_WAY, json.dumps({"status": RUNNING, "process": here()}))
        recorder = _Recorder(adapted, count, width, path)
        lane.context.watch = recorder.take
        todo = [(min(at, count), policy) for at, policy in switches]
        while not lane.done:
            while todo and lane.position >= todo[0][0]:
                lane.switch(todo.pop(0)[1], pin=True)
            recorder.policy = str(lane.policy)
            lane.read(chunk, upto=todo[0][0] if todo else None)
            yield lane.position - 1
        recorder.finish(np.asarray(tokens, np.int32))
        about = {
            "spec": asdict(spec),
            "begins": None if read is None else read.begins,
            "as_text": [] if read is None else list(read.as_text),
            "weights_sha256": model.sha256,
            "text_sha256": text_sha256,
            "segments": [asdict(s) for s in recorder.segments],
        }
        files.write(path / "stretch.json", json.dumps(about, indent=2) + "\n")
        (path / UNDER_WAY).unlink()
        ended = True
    except OSError as e:
        raise files.unwritten(path, e) from e
    finally:
        if not ended:
            # Part of a stretch is of no use, and takes much room.
            _remove(path)


def _clear(path: Path) -> None:
    """Remove what a capture left that was killed."""
    if not os.path.exists(path / UNDER_WAY):
        return
    try:
        about = files.record(path / UNDER_WAY, dict[str, Any], "")
    except ValueError:
        about = {}
    if status_of(about) == RUNNING:
        raise ValueError(f"a stretch is being captured into {path}: choose another folder")
    _remove(path)


def _remove(path: Path) -> None:
    for name in (*FILES, UNDER_WAY):
        with suppress(OSError):
            (path / name).unlink()
    with suppress(OSError):
        path.rmdir()


def _reads_otherwise(before: Policy, policy: Policy) -> bool:
    """Whether sinks that are pinned again have other keys than those that were read under an earlier policy."""
    if before.capacity is None or policy.sinks <= before.sinks:
        return False
    bent = [tuple(getattr(p, f.name) for f in Policy.interventions()) for p in (before, policy)]
    return before.capacity < policy.sinks - 1 or bent[0] != bent[1]


class _Recorder:
    """Takes in one pass after the other."""

    def __init__(self, model, tokens: int, width: int, path: Path) -> None:
        self.model, self.tokens, self.path, self.policy = model, tokens, path, ""
        layers, heads, dim = model.layers, model.heads, model.head_dim
        shapes = {
            "queries": (layers, heads, tokens, dim),
            "keys": (layers, model.kv_heads, tokens, dim),
            "norms": (len(Stretch.NORMS), layers, tokens),
        }
        self.arrays = {name: files.mapped(path / f"{name}.npy", shape) for name, shape in shapes.items()}
        self._sizes = files.mapped(path / SIZES, (layers, tokens, width))
        """|h| [layers, tokens, width] on disk: no part of a stretch says what the median of all of it is."""
        self.segments: list[Segment] = []
        self._mass = np.zeros((layers, heads))
        self._massive = np.zeros((layers, TOP, 3), np.float32)

    def take(self, reading: BandedPass) -> None:
        begin, count = reading.start, reading.queries[0].shape[2]
        end, reach = begin + count, reading.band
        last = self.segments[-1] if self.segments else None
        alike = (self.policy, reach.sinks, reading.length)
        one = last is not None and (last.policy, last.reach.sinks, last.length) == alike
        if one:
            # `first` moves with a window, but says the same as where the segment began.
            self.segments[-1] = replace(last, stop=end)
        else:
            self.segments.append(Segment(begin, end, self.policy, reach, reading.length))
        for layer in range(self.model.layers):
            self._mass[layer] += reading.mass[layer].sum(-1).cpu().numpy()
            for name, of in (("queries", reading.queries), ("keys", reading.keys)):
                self.arrays[name][layer, :, begin:end] = of[layer][0].float().cpu().numpy()
            own = self.model.head_dim - self.model.positions.added
            sizes = [x[layer][0, ..., :own].float().norm(dim=-1).mean(0) for x in (reading.keys, reading.values)]
            hidden = reading.outputs[layer][0].float()
            for i, size in enumerate((*sizes, hidden.norm(dim=-1))):
                self.arrays["norms"][i, layer, begin:end] = size.cpu().numpy()
            self._largest(layer, hidden.abs(), begin)
            self._sizes[layer, begin:end] = hidden.abs().cpu().numpy()

    def _largest(self, layer: int, size: Tensor, begin: int) -> None:
        values, at = size.flatten().topk(min(TOP, size.numel()))
        found = torch.stack((values, (at // size.shape[1] + begin).float(), (at % size.shape[1]).float()), 1)
        both = np.concatenate((self._massive[layer], found.cpu().numpy()))
        self._massive[layer] = both[np.argsort(-both[:, 0], kind="stable")][:TOP]

    def finish(self, tokens: NDArray[np.int32]) -> None:
        for array in self.arrays.values():
            array.flush()
        self.arrays = {}
        median = np.array([metrics.median_size(s) for s in self._sizes], np.float32)
        del self._sizes
        # Before the small files are written: they then have room.
        (self.path / SIZES).unlink()
        small = {"massive": self._massive, "mass": (self._mass / self.tokens).astype(np.float32), "median": median}
        for name, array in {**small, "token_ids": tokens}.items():
            with files.written(self.path / f"{name}.npy") as f:
                np.save(f, array)
