"""Experiments of the papers, as grids of cells that any model can be put through, and the tables they end in.

The papers' numbers are theirs, of their models and texts; they stand beside ours to compare the shape and not the
digits.  What a cell says is read from its run folder.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import files, metrics, texts
from ..files import Kind
from ..models.kinds import named
from ..policies import POLICIES, parse
from ..runs.about import about_of
from ..runs.folder import Folder
from ..runs.reader import load
from ..runs.reading import begun
from ..runs.run import Run
from ..runs.spec import Spec
from ..settings import Registry
from ..texts import titled, with_bos

if TYPE_CHECKING:
    from ..models.language_model import LanguageModel

RATE_TOKENS, RATE_SAMPLES, RATE_THRESHOLD = 64, 100, 0.3
"""T, the number of texts, and ε of the sink rate (Gu et al. 2024)."""
BUDGETS = (64, 128, 256, 512)
INTERVAL = 16


Row = tuple[str, str, tuple[str, ...]]
"""Label and policy of a cell, and the paper's numbers for it."""


@dataclass(frozen=True)
class Cell:
    """One run of an experiment: what is read, and the paper's numbers for it, one for each of its models."""

    label: str
    spec: Spec
    paper: tuple[str, ...] = ()
    samples: int = 0
    """Of how many short texts a mean is taken; 0: one text is read to its end."""

    @property
    def name(self) -> str:
        """The name of its folder."""
        written = re.sub(r"[^\w.+=-]+", "-", policy := self.spec.policies[0])
        if len(written) > 120:
            # No file system takes a name of any length.
            written = f"{written[:100]}-{hashlib.sha256(policy.encode()).hexdigest()[:12]}"
        return written + (f"-{self.samples}-samples" if self.samples else "")

    def write(self, place: Path, model: "LanguageModel") -> None:
        """Read the text into a run folder; of many short texts, what each head gave to their first tokens.

        Raises ValueError where the text cannot be read.
        """
        if self.samples:
            self._write_sink_rates(place, model)
        else:
            write_run(place, self.spec, model)

    def _write_sink_rates(self, place: Path, model: "LanguageModel") -> None:
        from .measures import joined, measure, samples_of_text

        spec, source = self.spec, texts.read(self.spec.text)
        read = samples_of_text(source, model.tokenizer, spec, self.samples)
        alpha = joined(list(measure(model, read.ids))).heads["alpha"]
        place.mkdir()
        np.savez_compressed(place / "alpha.npz", alpha=alpha)
        about: dict[str, Any] = {"spec": asdict(spec), "samples": self.samples, "text_sha256": source.sha256}
        about |= {"begins": read.begins, "as_text": list(read.as_text)}
        about |= {"weights_sha256": model.sha256, "status": "finished"}
        files.write(place / "run.json", json.dumps(about, indent=2) + "\n")


def write_run(
    place: Path, spec: Spec, model: "LanguageModel", told: Callable[[int], object] = lambda tokens: None
) -> Run:
    """Read a text to its end into a new run folder.  `told`: hears of every chunk of a lane how many tokens it had, and
    may raise to end the reading.

    Raises ValueError where the text cannot be read.
    """
    from ..engine.stream import stream

    source = texts.read(spec.text)
    run, ids = begun(spec, model, source)
    folder = Folder(place, run, text_sha256=source.sha256, weights_sha256=model.sha256, tokens=len(ids))
    for step in stream(model, ids, [parse(p) for p in spec.policies], chunk=spec.chunk, fidelity=spec.fidelity):
        folder.append(step)
        told(len(step.nll))
    folder.finish("finished")
    return run


@dataclass(frozen=True)
class Experiment:
    """What a paper did, to be done again."""

    title: str
    paper: str
    policies: Callable[[int], Sequence[Row]]
    """The cells for a cache of so many tokens."""
    tokens: int = 4096
    cache: int = 256
    columns: tuple[str, ...] = ()
    """The paper's models, texts and caches, in the order of its numbers."""
    samples: int = 0
    notes: tuple[str, ...] = field(default=())
    """Sentences below the table; `remarks` fills in of how many tokens it is."""

    def cells(self, base: Spec, cache: int | None = None) -> list[Cell]:
        """The cells; `base` says which model reads what, and how much of it."""
        base = replace(base, tokens=base.tokens or self.tokens)
        rows = self.policies(self.cache if cache is None else cache)
        try:
            policies = [str(parse(policy)) for _, policy, _ in rows]
        except ValueError as e:
            raise ValueError(f"cache must be another number of tokens than {cache}: {e}") from e
        return [
            Cell(label, replace(base, policies=(policy,)), paper, self.samples)
            for policy, (label, _, paper) in zip(policies, rows, strict=True)
        ]

    def remarks(self, cells: Sequence[Cell]) -> list[str]:
        """The notes on these cells."""
        tokens = cells[0].spec.tokens or self.tokens
        even = float(np.mean(1 / np.arange(1, tokens + 1)))
        numbers = {"tokens": tokens, "samples": self.samples, "together": tokens * self.samples, "even": even}
        return [note.format(**numbers) for note in self.notes]

    def table(self, cells: Sequence[Cell], place: Path) -> tuple[list[str], list[list[str]]]:
        """Header and rows, of those cells that are finished under a folder."""
        if self.samples:
            return _sink_rates(cells, place)
        done = [cell for cell in cells if (place / cell.name / "tokens.parquet").exists()]
        about = f"{_asked(cells[0].spec)}{_begins((done or cells)[0], place)}"
        header = ["Policy", f"Perplexity, {about}", "Tokens", "Cached tokens, at most", *self.columns]
        rows = []
        for cell in done:
            track = load(place / cell.name).tracks[0]
            perplexity = f"{metrics.perplexity(track.nll.view()):.2f}"
            counts = f"{len(track.nll) + 1}", f"{track.cache_tokens.view().max()}"
            rows.append([cell.label, perplexity, *counts, *(cell.paper or ("–",) * len(self.columns))])
        return header, rows


def _asked(spec: Spec) -> str:
    """Model and text, without the folders of somebody's machine."""
    return f"{named(spec.model)} on {titled(spec.text)}"


def _begins(cell: Cell, place: Path) -> str:
    """What the text of a finished cell begins with, where that is known."""
    folder = place / cell.name
    begins = about_of(folder).get("begins") if (folder / "run.json").exists() else None
    return "" if begins is None else f" {with_bos(begins)}"


def _sink_rates(cells: Sequence[Cell], place: Path) -> tuple[list[str], list[list[str]]]:
    """α_1 and sink rate of each layer, and of all."""
    spec = cells[0].spec
    header = [
        "Layer",
        f"α₁, {_asked(spec)}{_begins(cells[0], place)}",
        "± between stretches",
        f"Sink rate, ε = {RATE_THRESHOLD}",
    ]
    file = place / cells[0].name / "alpha.npz"
    if not file.exists():
        return header, []
    alpha = files.arrays(file, {"alpha": Kind("f", (None, None, None))})["alpha"]
    mean, (by_layer, rate) = alpha.mean(0), metrics.sink_rate(alpha, RATE_THRESHOLD)
    spread = alpha.mean(2).std(0, ddof=1) if len(alpha) > 1 else np.full(len(mean), np.nan)
    rows = [
        [str(layer), f"{mean[layer].mean():.4f}", f"{spread[layer]:.4f}", f"{100 * by_layer[layer]:.1f} %"]
        for layer in range(len(mean))
    ]
    whole = alpha.mean((1, 2)).std(ddof=1) if len(alpha) > 1 else np.nan
    rows.append(["all", f"{mean.mean():.4f}", f"{whole:.4f}", f"{100 * rate:.1f} %"])
    paper = {"GPT2-XL": "77.00 %", "Mistral-7B": "97.49 %", "LLaMA2-7B": "92.47 %", "LLaMA3-8B": "99.02 %"}
    rows += [[f"Paper: {name}", "–", "–", rate] for name, rate in paper.items()]
    return header, rows


def _four_policies(cache: int) -> list[Row]:
    return [
        ("Dense", "dense", ("5641",)),
        (f"Window {cache}", f"window:window={cache}", ("5158",)),
        (f"Recompute {cache}", f"recompute:window={cache},stride=16", ("5.43",)),
        (f"Sinks + window 4 + {cache - 4}", f"streaming:sinks=4,window={cache - 4}", ("5.40",)),
    ]


def _sinks(cache: int) -> list[Row]:
    paper = {
        0: ("17.90", "460.29", "21.62", "3359.95"),
        1: ("12.12", "14.99", "11.95", "11.88"),
        2: ("12.12", "15.00", "12.09", "10.51"),
        4: ("12.12", "14.99", "12.09", "9.59"),
        8: ("12.12", "14.98", "12.02", "9.54"),
    }
    return [(f"{s} + {cache - s}", f"streaming:sinks={s},window={cache - s}", paper[s]) for s in paper]


def _newlines(cache: int) -> list[Row]:
    return [
        (f"0 + {cache}", f"window:window={cache}", ("5158.07",)),
        (f"4 + {cache - 4}", f"streaming:sinks=4,window={cache - 4}", ("5.40",)),
        (f"4 newlines + {cache - 4}", f"streaming:sinks=4,window={cache - 4},first=newlines", ("5.60",)),
    ]


def _sizes(cache: int) -> list[Row]:
    paper = {
        256: ("13.61", "14.12", "13.17", "–"),
        512: ("12.84", "14.25", "12.52", "9.73"),
        1024: ("12.34", "14.33", "12.08", "9.32"),
        2048: ("12.84", "14.99", "12.09", "9.08"),
    }
    return [(f"4 + {size - 4}", f"streaming:sinks=4,window={size - 4}", paper[size]) for size in paper]


def _budgets(cache: int) -> list[Row]:
    ranked = [p.name for p in POLICIES.values() if p.store in ("ranked", "ragged") and p.name != "late"]
    # Layers that keep everything would have no budget to be compared at.
    named = [f"{name}:interval={INTERVAL}" + (",skip=0" if name == "knorm" else "") for name in ranked]
    policies = [parse(p) for p in ("streaming", *named)]
    rows = [(f"{p.title}, {b}", str(p.at_budget(b)), ()) for p in policies for b in BUDGETS]
    return [("Dense", "dense", ()), *rows]


STREAMING = "Xiao et al. 2023, Efficient Streaming Language Models with Attention Sinks"
PG19 = ("Falcon-7B, PG19", "MPT-7B, PG19", "Pythia-12B, PG19", "Llama-2-7B, PG19")
EXPERIMENTS = Registry(
    "experiment",
    {
        "policies": Experiment(
            "The four policies",
            f"{STREAMING}, Figures 1 and 3",
            _four_policies,
            columns=("Paper: Llama-2-13B, first book of PG19, cache 1024",),
            notes=("Dense falls apart beyond the length that a model was trained on: the paper's 5641 is read there.",),
        ),
        "sinks": Experiment(
            "How many sinks are enough?",
            f"{STREAMING}, Table 2",
            _sinks,
            columns=tuple(f"Paper: {c}" for c in PG19),
            notes=("The paper's caches are 2048 tokens, and 4096 for Llama-2-7B.",),
        ),
        "newlines": Experiment(
            "Newlines as sinks",
            f"{STREAMING}, Table 1",
            _newlines,
            columns=("Paper: Llama-2-13B, first book of PG19, cache 1024",),
        ),
        "sizes": Experiment(
            "Does a larger cache help?",
            f"{STREAMING}, Table 6",
            _sizes,
            tokens=8192,
            columns=tuple(f"Paper: {c}" for c in PG19),
            notes=("The paper's fourth column goes on to 4 + 4092, which has 9.59.",),
        ),
        "budgets": Experiment(
            "Policies and budgets",
            "perplexity against cache size, as papers on eviction draw it",
            _budgets,
            tokens=2000,
            notes=(f"Policies that rank slots evict every {INTERVAL} tokens.",),
        ),
        "sink-rate": Experiment(
            "Sink rate of each layer",
            "Gu et al. 2024, When Attention Sink Emerges in Language Models, Table 1",
            lambda cache: [("α₁", "dense", ())],
            tokens=RATE_TOKENS,
            samples=RATE_SAMPLES,
            notes=(
                "α₁: the mean attention that the first of {tokens:,} tokens gets, over {samples} stretches of the "
                "text, which overlap where it has fewer than {together:,} tokens; attention that is spread evenly "
                "would give {even:.4f}. Sink rate: the share of heads and stretches with α₁ > ε; the paper's are of "
                f"{RATE_TOKENS} tokens.",
            ),
        ),
    },
)
