"""What is measured of every head over short texts, as papers on the sink do: whole matrices, one layer at a time.

A text here is a sample of T tokens that begins at its own beginning, read under dense attention.  Every head of every
sample gets a number for each measure; means and spreads over samples are left to the caller.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .. import files, metrics, texts
from ..engine.attention.call import Call
from ..families.rotary import Adapted
from ..models.language_model import LanguageModel
from ..runs.result import Keep
from ..runs.spec import Spec

SAMPLES_PER_PASS = 16
"""Short texts that go through the model in one pass, at most."""
LONGEST = 4096
"""Tokens of a sample, at most: its matrices are whole."""
MEASURES = {
    "sink_mass": "Attention to the first tokens",
    "alpha": "Attention to the first token, α₁",
    "distance": "Mean distance attended, tokens",
    "entropy": "Entropy of attention, nats",
    "diagonal": "Attention to the token itself",
    "separators": "Attention to separators",
    "top": "Attention to the most attended token",
}
"""Of each head; means over the queries of a text."""
FILE = "measures.npz"
NORMS = ("key", "value", "hidden")
MASSIVE = (100.0, 1000.0)
"""An activation is massive above the first, and above so many medians of its layer (Sun et al. 2024)."""
SEPARATORS = frozenset(".,;:!?")


@dataclass
class Measured:
    """What was measured of some samples.

    `heads[measure]` [samples, layers, heads]; `norms` [samples, NORMS, layers, 2]: mean norms at the first token and at
    all others; `largest` [samples, layers, 3] and `median` [samples, layers] of |h|; `largest_at` [samples, layers,
    2]: token and channel of the largest.
    """

    heads: dict[str, NDArray[np.float32]]
    norms: NDArray[np.float32]
    largest: NDArray[np.float32]
    median: NDArray[np.float32]
    largest_at: NDArray[np.int64]

    def sink_rate(self, threshold: float = 0.3) -> tuple[NDArray[np.float32], float]:
        """The sink rate of each layer [layers] and of all (metrics.sink_rate)."""
        return metrics.sink_rate(self.heads["alpha"], threshold)

    @property
    def massive(self) -> NDArray[np.bool_]:
        """Which layers have a massive activation in most samples, [layers]."""
        size, times = MASSIVE
        found = (self.largest[..., 0] > size) & (self.largest[..., 0] >= times * self.median)
        return found.mean(0) > 0.5


@dataclass(eq=False)
class _MeasuringPass:
    """Attends with whole matrices, and measures them."""

    model: Adapted
    first: int
    separators: Tensor
    """Which tokens of each sample are separators, [samples, tokens]."""
    heads: dict[str, list[Tensor]] = field(default_factory=lambda: {name: [] for name in MEASURES})
    norms: list[list[Tensor]] = field(default_factory=lambda: [[], []])

    def attend(
        self,
        attention: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        **settings: Any,
    ) -> Tensor:
        call = Call.of(attention, query, key, value, **settings)
        samples, tokens = len(query), call.queries
        positions = torch.arange(tokens, device=query.device)
        angles = self.model.angles(attention, torch.arange(tokens, device=self.model.device), tokens)
        q, k = (self.model.rotate(attention, x, angles) for x in (query, key))
        k, v = k.repeat_interleave(call.groups, 1), value.repeat_interleave(call.groups, 1)
        distance = positions[:, None] - positions[None]
        unseen = distance < 0
        if call.sliding_window is not None:
            unseen = unseen | (distance >= call.sliding_window)
        outs, found = [], {name: [] for name in MEASURES}
        for one in range(samples):
            # One sample at a time: so a matrix of 4,096 tokens fits for all heads.
            scores = call.capped(q[one] @ k[one].transpose(-1, -2) * call.scaling).float()
            scores = call.with_sinks(scores.masked_fill(unseen, float("-inf")))
            weights = torch.softmax(scores, -1)[..., :tokens]
            outs.append(weights.to(v.dtype) @ v[one])
            for name, number in self._of(weights, distance, self.separators[one]).items():
                found[name].append(number)
        for name, numbers in found.items():
            self.heads[name].append(torch.stack(numbers))
        for kind, x in enumerate((key, value)):
            own = x[..., : call.dim - self.model.positions.added]
            self.norms[kind].append(own.float().norm(dim=-1).mean(1))
        return torch.stack(outs).transpose(1, 2)

    def _of(self, weights: Tensor, distance: Tensor, separators: Tensor) -> dict[str, Tensor]:
        """Each measure, [heads], of weights [heads, queries, keys]."""
        first = min(self.first, weights.shape[-1])
        later = weights[:, min(first, weights.shape[1] - 1) :]
        return {
            "sink_mass": later[..., :first].sum(-1).mean(-1),
            "alpha": metrics.alpha(weights),
            "distance": (weights * distance).sum(-1).mean(-1),
            "entropy": -torch.special.xlogy(weights, weights).sum(-1).mean(-1),
            "diagonal": weights.diagonal(dim1=-2, dim2=-1).mean(-1),
            "separators": weights[..., separators].sum(-1).mean(-1),
            "top": weights.mean(-2).amax(-1),
        }


def measure(
    model: LanguageModel | Adapted,
    samples: NDArray[np.int32],
    *,
    first: int = 4,
    separators: NDArray[np.bool_] | None = None,
) -> Iterator[Measured]:
    """Measures of some samples after the other, [samples, tokens]; joined by `joined`.

    `first`: how many first tokens count as sinks; `separators` [vocabulary]: which tokens are separators.  Raises
    ValueError where samples are too long.
    """
    adapted = model.adapted if isinstance(model, LanguageModel) else model
    tokens = samples.shape[1]
    if not 2 <= tokens <= LONGEST:
        raise ValueError(f"a sample has 2 to {LONGEST:,} tokens, not {tokens:,}: choose another length")
    if first < 1:
        raise ValueError(f"at least 1 first token must count as sink, not {first}")
    together = max(1, min(SAMPLES_PER_PASS, 4096 // tokens))
    for begin in range(0, len(samples), together):
        part = samples[begin : begin + together]
        ids = torch.as_tensor(part.astype(np.int64), device=adapted.device)
        apart = np.zeros(part.shape, bool) if separators is None else separators[part]
        reader = _MeasuringPass(adapted, first, torch.as_tensor(apart, device=adapted.device))
        hidden: dict[int, Tensor] = {}
        adapted.forward(ids, reader, last=1, outputs=hidden)
        yield _collected(reader, [hidden[layer] for layer in range(adapted.layers)])


def _collected(reader: _MeasuringPass, hidden: list[Tensor]) -> Measured:
    heads = {name: torch.stack([x.cpu() for x in of], 1).numpy() for name, of in reader.heads.items()}
    sizes = [[x.cpu() for x in of] for of in (*reader.norms, [h.float().norm(dim=-1) for h in hidden])]
    norms = torch.stack(
        [torch.stack([torch.stack((n[:, 0], n[:, 1:].mean(1)), -1) for n in of], 1) for of in sizes], 1
    ).numpy()
    largest, largest_at, median = [], [], []
    for h in hidden:
        size = h.float().abs().cpu()
        flat = size.flatten(1)
        top, at = flat.topk(min(3, flat.shape[1]), 1)
        largest.append(top)
        largest_at.append(torch.stack((at[:, 0] // size.shape[2], at[:, 0] % size.shape[2]), -1))
        # numpy's is between the two in the middle; torch's is the lower one.
        median.append(torch.from_numpy(np.median(flat.numpy(), 1)))
    return Measured(heads, norms, *(torch.stack(x, 1).numpy() for x in (largest, median, largest_at)))


def joined(parts: list[Measured]) -> Measured:
    """All samples of several parts."""
    return Measured(
        {name: np.concatenate([p.heads[name] for p in parts]) for name in MEASURES},
        *(np.concatenate([getattr(p, name) for p in parts]) for name in ("norms", "largest", "median", "largest_at")),
    )


def kept_measures(
    keep: Keep,
    model: LanguageModel,
    samples: NDArray[np.int32],
    *,
    first: int = 4,
    separators: NDArray[np.bool_] | None = None,
    known: Path | None = None,
) -> Iterator[Measured]:
    """All that was measured so far, put into a folder as `measure` yields it: first what lies in the folder `known`,
    then what is missing there.  Raises ValueError where that is damaged, too."""
    measured, done = None, 0
    if known is not None and os.path.exists(known / FILE):
        measured = read(known / FILE)
        if measured.heads["alpha"].shape[1:] != (model.layers, model.heads):
            raise ValueError(f"{known / FILE} is of a model with other layers or heads: begin anew")
        done = len(measured.median)
        yield measured
    for part in measure(model, samples[done:], first=first, separators=separators):
        measured = part if measured is None else joined([measured, part])
        keep(lambda folder, measured=measured: write(measured, folder.path / FILE))
        yield measured


def write(measured: Measured, path: Path) -> None:
    """What was measured, as arrays of a .npz file under the names that they have here.

    Raises ValueError where the disk does not take it.
    """
    arrays = {name: getattr(measured, name) for name in ("norms", "largest", "median", "largest_at")}
    with files.written(path) as f:
        np.savez_compressed(f, **arrays, **measured.heads)


def read(path: Path) -> Measured:
    """What `write` wrote.  Raises ValueError where it is damaged, or of something else."""
    heads = files.arrays(path, dict.fromkeys(MEASURES, files.Kind("f", (None, None, None))))
    samples, layers, _ = heads["alpha"].shape
    if not heads["alpha"].size or any(x.shape != heads["alpha"].shape for x in heads.values()):
        raise ValueError(f"{path} has measures of different samples, layers or heads: it is damaged")
    more = files.arrays(
        path,
        {
            "norms": files.Kind("f", (samples, len(NORMS), layers, 2)),
            "largest": files.Kind("f", (samples, layers, None)),
            "median": files.Kind("f", (samples, layers)),
            "largest_at": files.Kind("iu", (samples, layers, 2)),
        },
    )
    return Measured(heads, **more)


def separators_of(tokenizer: PreTrainedTokenizerBase | None, vocabulary: int) -> NDArray[np.bool_]:
    """Which tokens are punctuation between words or sentences, or a newline, [vocabulary]; none without a tokenizer."""
    if tokenizer is None:
        return np.zeros(vocabulary, bool)
    tokens = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    found = np.zeros(max(vocabulary, len(tokens)), bool)
    found[: len(tokens)] = ["\n" in token or token.strip() in SEPARATORS for token in tokens]
    return found


def samples_of_text(
    text: texts.Text, tokenizer: PreTrainedTokenizerBase | None, spec: Spec, count: int
) -> texts.Tokenized:
    """Samples of a text as a Spec has it read, each with a BOS of its own; their ids are [count, spec.tokens].

    Raises ValueError as `samples_of` does.
    """
    read = texts.tokenized(text, tokenizer, bos="off", special=spec.special)
    assert spec.tokens is not None, "a Spec of samples says how long they are"
    samples = samples_of(read.ids, count, spec.tokens, texts.opening(tokenizer, spec.bos, text))
    return texts.Tokenized(samples, texts.begins(tokenizer, samples[-1]), read.as_text)


def samples_of(tokens: NDArray[np.int32], count: int, length: int, begin: Sequence[int] = ()) -> NDArray[np.int32]:
    """`count` stretches of `length` tokens, [count, length], evenly over a text; they overlap where it is short.

    Each is a text of its own, so each begins with `begin` (texts/bos.py), which counts as its first tokens.  Raises
    ValueError where the text or the samples are too short, or the text has not so many that differ.
    """
    if len(tokens) < length:
        raise ValueError(
            f"the text has {len(tokens)} tokens, and samples of {length} are asked for: choose a longer one"
        )
    if length <= len(begin):
        raise ValueError(f"BOS alone takes {len(begin)} of the {length} tokens of a sample: choose longer samples")
    if count > (differ := len(tokens) - length + 1):
        raise ValueError(
            f"the text has {differ:,} different samples of {length:,} tokens, and {count:,} are asked for: choose a "
            "longer one, or fewer samples"
        )
    begins = np.linspace(0, len(tokens) - length, count).astype(int)
    return np.stack([texts.begun(begin, tokens[b : b + length])[:length] for b in begins])
