"""Reads a text once and keeps it as a stretch (stretch.py), for maps that no memory would hold."""

import json
import os
from collections.abc import Generator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .. import files, metrics
from ..engine.attention.banded import BandedPass
from ..engine.layers.quantized import Quantization
from ..engine.stream import CHUNK, open_lanes
from ..families.rotary import Adapted
from ..models.language_model import LanguageModel
from ..policies import Policy, parse
from ..runs.claim import claimed, claimed_new
from ..runs.spec import Spec
from ..runs.status import CAPTURING, RUNNING, here, status_of
from ..runs.stopped import refuse_written
from ..texts import Text, Tokenized
from .stretch import Segment, Stretch

LONGEST = 65_536
"""Tokens that a stretch may have."""
SIZES = "sizes.npy.part"
"""Sizes of all hidden states, until their medians are known."""
LARGE = ("queries.npy", "keys.npy", "quantized.npy", "norms.npy")
FILES = (*LARGE, "token_ids.npy", "massive.npy", "mass.npy", "median.npy", SIZES)
TOP = 3
"""Largest activations that are kept of each layer."""


@dataclass(frozen=True)
class CutOff:
    """What a capture was asked for that did not end."""

    spec: Spec
    text_sha256: str = ""
    switches: tuple[tuple[int, str], ...] = ()
    """From which position on which other policy."""
    chunk: int = CHUNK


def cut_off(path: Path) -> CutOff | None:
    """What was asked for of the capture that was killed in this folder; None where there is none.

    Raises ValueError where somebody captures into it, or it does not say what was asked for.
    """
    # What was killed when all but its end was written is whole.
    if not os.path.exists(file := path / CAPTURING) or os.path.exists(path / "stretch.json"):
        return None
    about = files.record(file, dict[str, Any], "that of a capture")
    refuse_written(path, status_of(about, path), about.get("process"))
    return files.record(file, CutOff, "what a capture was asked for")


def tokenized(text: Text, tokenizer: PreTrainedTokenizerBase | None, spec: Spec) -> Tokenized:
    """A text as a stretch of `spec.tokens` tokens reads it (of all that it has, where those are fewer).

    There is one token more, which is only predicted; where the text has no more, its last one stands in for it.
    """
    limit = None if spec.tokens is None else spec.tokens + 1
    read = replace(spec, tokens=limit).tokenized(text, tokenizer)
    return read if len(read.ids) == limit else replace(read, ids=np.append(read.ids, read.ids[-1:]))


def needed(layers: int, heads: int, kv_heads: int, dim: int, tokens: int, *, quantized: bool = False) -> int:
    """Bytes on disk of a stretch of so many tokens; `quantized`: of a lane whose cache has few bits."""
    return 4 * layers * tokens * ((heads + (1 + quantized) * kv_heads) * dim + len(Stretch.NORMS))


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
) -> Generator[int]:
    """Read a text under the first policy of `spec` and keep it in a folder; yields how many tokens have been read.

    `switches`: from which position on the lane reads under which other policy; sinks that it lacks are pinned again.
    `read`: how the text became these tokens, to be written down.
    When it has ended, `Stretch(path)` opens it.  Raises ValueError where the policy does not keep by place, where the
    text is longer than LONGEST or ends before a switch, where pinned sinks would not be the keys that were captured or
    a quantized cache would not stay what it is, where the folder holds something already, or where the disk has no
    room; a capture that does not end leaves nothing.
    """
    policy, count = parse(spec.policies[0]), len(tokens) - 1
    check_policies(policy, switches)
    # Its last token is read, too, so that one less fits where positions are learned.
    if count > (most := min(LONGEST, model.adapted.longest or LONGEST)):
        raise ValueError(f"a stretch has at most {most:,} tokens, and this would have {count:,}: read fewer tokens")
    if late := [at for at, _ in switches if at > count]:
        raise ValueError(f"the stretch has {count:,} tokens and ends before {late[0]:,}: switch the policy earlier")
    if (path / "stretch.json").exists():
        raise ValueError(f"{path} holds a stretch already: choose another folder")
    lane = open_lanes(model.adapted, tokens, [policy])[0]
    adapted = model.adapted
    width = adapted.network.config.get_text_config(decoder=True).hidden_size
    size = needed(
        adapted.layers, adapted.heads, adapted.kv_heads, adapted.head_dim, count, quantized=policy.cache != "own"
    )
    files.check_room(path, size + needed_meanwhile(adapted.layers, width, count), "this stretch")
    # While the text is read, the files of the model may go, or others take their place.
    weights_sha256 = model.sha256
    _clear(path)
    ended, opening = False, ExitStack()
    opening.enter_context(claimed_new(path))
    try:
        asked = CutOff(spec, text_sha256, tuple((at, str(policy)) for at, policy in switches), chunk)
        began = {"started": datetime.now(UTC).isoformat(timespec="seconds")}
        files.write(path / CAPTURING, json.dumps({"status": RUNNING, "process": here(), **began, **asdict(asked)}))
        opening.close()
        recorder = _Recorder(adapted, count, width, path, Quantization.of(policy))
        lane.context.watch = recorder.add
        pending = [*switches]
        while not lane.done:
            while pending and lane.position >= pending[0][0]:
                lane.switch(pending.pop(0)[1], pin=True)
            recorder.policy = str(lane.policy)
            lane.read(chunk, upto=pending[0][0] if pending else None)
            yield lane.position - 1
        recorder.finish(np.asarray(tokens, np.int32))
        about = {
            "spec": asdict(spec),
            "begins": None if read is None else read.begins,
            "as_text": [] if read is None else list(read.as_text),
            "weights_sha256": weights_sha256,
            "text_sha256": text_sha256,
            "segments": [asdict(s) for s in recorder.segments],
            **began,
        }
        files.write(path / "stretch.json", json.dumps(about, indent=2) + "\n")
        (path / CAPTURING).unlink()
        ended = True
    except OSError as e:
        raise files.unwritten(path, e) from e
    finally:
        opening.close()
        if not ended:
            # Part of a stretch is of no use, and takes much room.
            _remove(path)


def check_policies(first: Policy, switches: Sequence[tuple[int, Policy]]) -> None:
    """Raise ValueError where a stretch cannot be read under these policies; see `capture`."""
    policies = [first, *(policy for _, policy in switches)]
    for policy in policies:
        if not policy.capturable or policy.first != "own":
            raise ValueError(
                f"{policy.label}: a stretch is captured under dense, window, shift or sinks + window, with the text's "
                "own first tokens: choose one of these"
            )
        if switches and policy.cache != "own":
            raise ValueError(
                f"{policy.label}: a key has two forms in a stretch, as it came and as it was first quantized, and a "
                "switch may give it more: capture it without switches"
            )
    begins = [0, *(at for at, _ in switches)]
    for i, policy in enumerate(policies[1:], 1):
        sinks, earlier = policy.first_protected(LONGEST), policies[:i]
        # First tokens may have left under any of these, so that they are pinned again; some of these have read them.
        may_lack = any(p.capacity is not None and p.first_protected(LONGEST) < sinks for p in earlier)
        readers = [p for at, p in zip(begins[:i], earlier, strict=True) if at <= sinks]
        if may_lack and any(_reads_otherwise(before, policy) for before in readers):
            raise ValueError(
                f"{policy.label}: its first {sinks} tokens would be read again in another way than they were captured: "
                "begin with a longer window, and with the positions and interventions that are to come"
            )


def _clear(path: Path) -> None:
    """Remove what a capture left that was killed."""
    if not os.path.exists(path / CAPTURING):
        return
    with claimed(path):
        try:
            about = files.record(path / CAPTURING, dict[str, Any], "")
        except ValueError:
            about = {}
        if status_of(about, path) == RUNNING:
            raise ValueError(f"a stretch is being captured into {path}: choose another folder")
        _remove(path)


def _remove(path: Path) -> None:
    for name in (*FILES, CAPTURING):
        with suppress(OSError):
            (path / name).unlink()
    with suppress(OSError):
        path.rmdir()


def _reads_otherwise(before: Policy, policy: Policy) -> bool:
    """Whether sinks that a policy pins again have other keys than those that were read under an earlier one."""
    if before.capacity is not None and before.capacity < policy.first_protected(LONGEST) - 1:
        return True
    names = ("unplaced", *(f.name for f in Policy.interventions()))
    return any(getattr(before, name) != getattr(policy, name) for name in names)


class _Recorder:
    """Writes one pass after the other into the arrays of a stretch."""

    def __init__(self, model: Adapted, tokens: int, width: int, path: Path, quantization: Quantization | None) -> None:
        self.model, self.tokens, self.path, self.policy = model, tokens, path, ""
        self.quantization = quantization
        layers, heads, dim = model.layers, model.heads, model.head_dim
        shapes = {
            "queries": (layers, heads, tokens, dim),
            "keys": (layers, model.kv_heads, tokens, dim),
            "norms": (len(Stretch.NORMS), layers, tokens),
        }
        if quantization is not None:
            shapes["quantized"] = shapes["keys"]
        self.arrays = {name: files.mapped(path / f"{name}.npy", shape) for name, shape in shapes.items()}
        self._sizes = files.mapped(path / SIZES, (layers, tokens, width))
        """|h| [layers, tokens, width] on disk: no part of a stretch says what the median of all of it is."""
        self.segments: list[Segment] = []
        self._mass = np.zeros((layers, heads))
        self._massive = np.zeros((layers, TOP, 3), np.float32)

    def add(self, done: BandedPass) -> None:
        """Take in what a pass read."""
        begin, band = done.start, done.band
        end = begin + done.queries[0].shape[2]
        last = self.segments[-1] if self.segments else None
        rule = (self.policy, band.sinks, done.length)
        if last is not None and (last.policy, last.reach.sinks, last.length) == rule:
            # `first` moves with a window, but says the same as where the segment began.
            self.segments[-1] = replace(last, stop=end)
        else:
            self.segments.append(Segment(begin, end, self.policy, band, done.length))
        assert done.outputs is not None, "a pass that is watched keeps what comes out of each layer"
        for layer in range(self.model.layers):
            self._mass[layer] += done.mass[layer].sum(-1).cpu().numpy()
            for name, of in (("queries", done.queries), ("keys", done.keys)):
                self.arrays[name][layer, :, begin:end] = of[layer][0].float().cpu().numpy()
            if self.quantization is not None:
                self._note_quantized(layer, done, end, self.quantization)
            own = self.model.head_dim - self.model.positions.added
            sizes = [x[layer][0, ..., :own].float().norm(dim=-1).mean(0) for x in (done.keys, done.values)]
            hidden = done.outputs[layer][0].float()
            for i, size in enumerate((*sizes, hidden.norm(dim=-1))):
                self.arrays["norms"][i, layer, begin:end] = size.cpu().numpy()
            self._note_largest(layer, hidden.abs(), begin)
            self._sizes[layer, begin:end] = hidden.abs().cpu().numpy()

    def _note_quantized(self, layer: int, done: BandedPass, end: int, q: Quantization) -> None:
        """Take in the keys that were quantized since the pass before this one, when `end` tokens have been read."""
        assert done.layers is not None, "a lane reads with what it holds"
        held, newly = done.layers[layer], done.newly[layer]
        window, first = held.keys.placed()
        # Of those that were quantized during the pass some may have left since.
        stretches = [(0, held.sink_keys), (first, window), *([] if newly is None else [(newly.begin, newly.keys)])]
        for first, keys in stretches:
            begin, until = max(first, q.end(done.start)), min(first + keys.shape[1], q.end(end))
            if begin < until:
                new = keys[:, begin - first : until - first]
                self.arrays["quantized"][layer, :, begin:until] = new.float().cpu().numpy()

    def _note_largest(self, layer: int, size: Float[Tensor, "tokens dim"], begin: int) -> None:
        values, at = size.flatten().topk(min(TOP, size.numel()))
        found = torch.stack((values, (at // size.shape[1] + begin).float(), (at % size.shape[1]).float()), 1)
        both = np.concatenate((self._massive[layer], found.cpu().numpy()))
        self._massive[layer] = both[np.argsort(-both[:, 0], kind="stable")][:TOP]

    def finish(self, tokens: NDArray[np.int32]) -> None:
        """Close the large arrays, and write the small ones."""
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
