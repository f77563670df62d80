"""Maps of a captured stretch at any scale, computed when they are drawn: no matrix of the whole exists anywhere.

A cell is the largest or the mean weight of scale × scale pairs of tokens.  Of every block of queries only those columns
are multiplied that some of them reach, so a band costs what a band has.  All is float32, whatever the model computes
in, and weights and what they sum up to come from the same scores, so a row sums to 1.
"""

import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from .. import texts
from ..engine.interventions import Interventions
from ..families.rotary import Adapted
from ..models.language_model import LanguageModel
from ..policies import parse
from ..runs.spec import Spec
from .capture import capture
from .region import Region
from .scores import Asking, LastRotated, Scores
from .stretch import Stretch

ROWS = 512
"""Queries that are multiplied at a time, about."""
FIRST = 4
"""First tokens that are shown one by one at any scale: a sink in one of thousands of columns would vanish."""
POOLS = ("max", "mean")
KINDS = ("weights", "logits")


class Atlas:
    """Draws the maps of one stretch, with the model that it was captured from; any number of threads may draw.

    Raises ValueError where the model has other weights.
    """

    def __init__(self, stretch: Stretch, model: LanguageModel | Adapted) -> None:
        self.stretch = stretch
        self.tokenizer = model.tokenizer if isinstance(model, LanguageModel) else None
        self._last = LastRotated()
        self._totals: dict[tuple[int, int], Tensor] = {}
        """Log-sum-exp of the scores of each query of a head, [tokens]; NaN where nobody has asked yet."""
        self._lock = threading.Lock()
        self.model = model.adapted if isinstance(model, LanguageModel) else model
        if isinstance(model, LanguageModel) and model.sha256 != stretch.about["weights_sha256"]:
            raise ValueError(
                f"{stretch.path} was captured from other weights than {model.name} has: load the model that it names"
            )

    def draw(
        self, layer: int, head: int, region: Region, *, pool: str = "max", kind: str = "weights"
    ) -> NDArray[np.float32]:
        """A map [cells, cells]: pooled weights, or logits before softmax; NaN where no query reached any key.

        Raises ValueError where there is no such head, pool or kind, or the region lies outside.
        """
        for what, chosen, options in (("pool", pool, POOLS), ("kind", kind, KINDS)):
            if chosen not in options:
                raise ValueError(f"{what} must be {' or '.join(options)}, not {chosen!r}")
        self._check(layer, head, region)
        (r0, r1), c0 = region.rows, region.columns[0]
        cells = _Cells(region, pool, kind)
        step = max(1, ROWS // region.scale) * region.scale
        with torch.inference_mode():
            totals = self._totals_of(layer, head, r0, r1) if kind == "weights" else None
            for begin in range(r0, r1, step):
                end = min(begin + step, r1)
                for first, scores in self._scores(layer, head, begin, end, region):
                    if totals is not None:
                        scores -= totals[begin - r0 : end - r0, None]
                    cells.add(scores, begin - r0, first - c0)
        return cells.pooled()

    def first(
        self, layer: int, head: int, rows: tuple[int, int], scale: int, *, pool: str = "max", kind: str = "weights"
    ) -> NDArray[np.float32]:
        """What queries gave to each of the first FIRST tokens, [cells, first tokens]: only queries are pooled.

        NaN where no query of a cell reached the token.  Raises ValueError as `draw` does.
        """
        shown = min(FIRST, self.stretch.tokens)
        fine = self.draw(layer, head, Region(rows, (0, shown)), pool=pool, kind=kind)
        cells = np.pad(fine, ((0, -len(fine) % scale), (0, 0)), constant_values=np.nan).reshape(-1, scale, shown)
        if pool == "max":
            return np.fmax.reduce(cells, 1)
        count = (~np.isnan(cells)).sum(1)
        return np.divide(np.nansum(cells, 1), count, out=np.full(count.shape, np.nan, np.float32), where=count > 0)

    def row(self, layer: int, head: int, token: int) -> NDArray[np.float32]:
        """What one token gave to each token of the stretch, [tokens]; NaN where it reached none."""
        return self.draw(layer, head, Region((token, token + 1), (0, self.stretch.tokens)))[0]

    def _check(self, layer: int, head: int, region: Region) -> None:
        s = self.stretch
        if not (0 <= layer < s.layers and 0 <= head < s.heads):
            raise ValueError(
                f"there is no head {layer}.{head}: layers are 0 to {s.layers - 1}, heads 0 to {s.heads - 1}"
            )
        if region.scale < 1:
            raise ValueError(f"a cell is at least 1 token wide, not {region.scale}")
        for begin, end in (region.rows, region.columns):
            if not 0 <= begin < end <= s.tokens:
                raise ValueError(f"tokens {begin} to {end} do not lie in this stretch of {s.tokens}")

    def _totals_of(self, layer: int, head: int, begin: int, end: int) -> Float[Tensor, " queries"]:
        """Log-sum-exp of all that queries begin … end − 1 reached, an extra logit included, [queries]."""
        with self._lock:
            known = self._totals.setdefault((layer, head), torch.full((self.stretch.tokens,), torch.nan))
        for at in range(begin, end, ROWS):
            rows = slice(at, min(at + ROWS, end))
            if known[rows].isnan().any():
                # Whoever else does the same meanwhile writes the same numbers.
                known[rows] = self._totals_of_block(layer, head, rows.start, rows.stop)
        return known[begin:end]

    def _totals_of_block(self, layer: int, head: int, begin: int, end: int) -> Float[Tensor, " queries"]:
        region = Region((begin, end), (0, self.stretch.tokens))
        parts = [_logsumexp(scores) for _, scores in self._scores(layer, head, begin, end, region)]
        extra, learned = torch.full((end - begin,), float("-inf")), self.model.settings[layer].get("s_aux")
        for segment in self.stretch.segments:
            rows = slice(max(0, segment.start - begin), max(0, segment.stop - begin))
            interventions, heads = Interventions.of(parse(segment.policy)), torch.empty(1, self.stretch.heads, 1, 1)
            sinks = None if learned is None else learned.float().cpu()
            sinks = sinks if interventions is None else interventions.sink(sinks, layer, heads)
            if sinks is not None:
                extra[rows] = sinks[head]
        return torch.logsumexp(torch.stack([*parts, extra]), 0)

    def _scores(self, layer: int, head: int, begin: int, end: int, region: Region) -> Iterator[tuple[int, Scores]]:
        """Scores of queries begin … end − 1 to the keys of the region that any of them reaches, part by part.

        Yields the first column and scores [queries, keys], −inf where a query does not reach a key; parts begin at a
        cell.
        """
        for segment in self.stretch.segments:
            start, stop = max(begin, segment.start), min(end, segment.stop)
            if start >= stop:
                continue
            asking = Asking(self.model, self.stretch, layer, head, segment, start, stop)
            for first, scores in asking.scores(region, self._last):
                yield first, padded(scores, start - begin, end - stop)


class _Cells:
    """Pools scores [queries, keys] into the cells of a region: their largest, or the mean of what was reached."""

    def __init__(self, region: Region, pool: str, kind: str) -> None:
        self._scale, self._max, self._weights = region.scale, pool == "max", kind == "weights"
        self._most = torch.full(region.shape, float("-inf"))
        self._total, self._count = torch.zeros(region.shape), torch.zeros(region.shape)

    def add(self, scores: Tensor, row: int, column: int) -> None:
        """Scores whose first pair is `row` queries and `column` keys inside the region: whole cells from there on.

        Of weights they are logarithms.
        """
        scale = self._scale
        scores = padded(scores, 0, -len(scores) % scale)
        # Rows first, which lie apart in memory: what is left to pool along them is small.
        rows = scores.view(-1, scale, scores.shape[1])
        ends = row // scale + len(rows), -(-(column + scores.shape[1]) // scale)
        where = slice(row // scale, ends[0]), slice(column // scale, ends[1])
        if self._max:
            largest = padded(rows.amax(1).T, 0, -scores.shape[1] % scale).T
            largest = largest.reshape(len(largest), -1, scale).amax(-1)
            self._most[where] = torch.maximum(self._most[where], largest)
            return
        reached = rows > float("-inf")
        values = rows.exp() if self._weights else rows.masked_fill(~reached, 0)
        for whole, part in ((self._total, values.sum(1)), (self._count, reached.sum(1).to(self._count.dtype))):
            part = torch.nn.functional.pad(part, (0, -part.shape[1] % scale))
            whole[where] += part.view(len(part), -1, scale).sum(-1)

    def pooled(self) -> NDArray[np.float32]:
        """The map [cells, cells]; NaN where nothing was reached."""
        if not self._max:
            return torch.where(self._count > 0, self._total / self._count, torch.nan).numpy()
        whole = self._most.exp() if self._weights else self._most
        return torch.where(self._most == float("-inf"), torch.nan, whole).numpy()


def _logsumexp(scores: Scores) -> Float[Tensor, " queries"]:
    """The same as torch's along rows, computed in place: scores are many, and are overwritten."""
    most = scores.amax(-1).clamp_(min=torch.finfo(scores.dtype).min)
    return most + scores.sub_(most[:, None]).exp_().sum(-1).log_()


def padded(scores: Scores, before: int, after: int) -> Float[Tensor, "rows keys"]:
    """Scores with so many rows of −inf before and after them."""
    if not before and not after:
        return scores
    return torch.nn.functional.pad(scores, (0, 0, before, after), value=float("-inf"))


def map_of(
    model: LanguageModel,
    text: str,
    *,
    layer: int,
    head: int,
    policy: str = "dense",
    bos: str = "auto",
    special: str = "text",
) -> dict[str, NDArray]:
    """The attention map of one head for some words, as the figure `head_map` draws it, and `show` in a notebook.

    `text`: the words themselves; `policy`: dense, window, shift or sinks + window as a person writes it; `bos`,
    `special`: how words become tokens (texts/).  Token 0 is BOS where they begin with it.

    Returns `map` [tokens, tokens], NaN where a query did not reach a key; `begin` and `scale`, as the figure asks for
    them; and what it is of: `tokens` [tokens], their texts; `head` [2], layer and head; `policy`, as it is written.
    """
    ids = texts.begun(texts.opening(model.tokenizer, bos), texts.encode(text, model.tokenizer, special=special)[0])
    spec = Spec(model.name, "words", (policy,), bos=bos, special=special)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "stretch"
        # The last token is only predicted: one more lets it ask too.
        for _ in capture(model, np.append(ids, ids[-1:]), spec, place):
            pass
        drawn = Atlas(Stretch(place), model).draw(layer, head, Region((0, len(ids)), (0, len(ids))))
    return {
        "map": drawn,
        "begin": np.array(0),
        "scale": np.array(1),
        "tokens": np.array(texts.token_texts(model.tokenizer, ids)),
        "head": np.array([layer, head]),
        "policy": np.array(spec.policies[0]),
    }
