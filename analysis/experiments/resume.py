"""Results that go on where they stopped: only what is missing of them is computed."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from ..models.language_model import LanguageModel
from ..policies import parse
from ..runs.result import Keep, StoppedResult
from ..runs.spec import Spec
from ..runs.stopped import text_of
from ..texts.sources import Text
from .ablation import Effect, heads_of, kept_knock_outs
from .costs import READINGS, SIZES, KeptCosts
from .measures import kept_measures, samples_of_text, separators_of
from .recall.asked import Asked, kept_answers
from .verdict import Plan
from .verdict.kept import kept_cells

Count = Annotated[int, msgspec.Meta(ge=1)]


class _KnockOuts(msgspec.Struct):
    kind: str
    layer: int | None


class _Measures(msgspec.Struct):
    samples: Count
    first: Count


def check_settings(kind: str, spec: Spec, settings: Mapping[str, Any]) -> None:
    """Raises ValueError where a folder of knock-outs, measures or costs does not say what was asked: it may be from
    other hands."""
    try:
        msgspec.convert(settings, {"knockouts": _KnockOuts, "measures": _Measures}.get(kind, dict))
    except msgspec.ValidationError as e:
        raise ValueError(f"it does not say what was asked ({e}): begin anew") from e
    if kind == "measures" and spec.tokens is None:
        raise ValueError("it does not say how long its samples are: begin anew")


def completed(keep: Keep, asked: StoppedResult, network: LanguageModel, source: Text) -> Iterator[float]:
    """The share of a result that there is, again and again while the rest of it is put into its folder.

    Raises ValueError where text or weights are others, or what is known is damaged.
    """
    asked.check(source.sha256, network.sha256)
    of_kind = {
        "knockouts": _knock_outs, "measures": _measures, "costs": _costs, "recall": _recall, "verdict": _verdict,
    }  # fmt: skip
    yield from of_kind[asked.kind](keep, asked, network, source)


def source_of(asked: StoppedResult) -> Text:
    """The text of a result.  Raises ValueError where it is no longer there, or nothing says what was asked."""
    if asked.kind == "verdict":
        return Plan.of(asked.spec, asked.settings).text
    if asked.kind == "recall":
        return Asked.of(asked.settings).text
    text = text_of(asked.spec.text)
    check_settings(asked.kind, asked.spec, asked.settings)
    return text


def _ids(asked: StoppedResult, network: LanguageModel, source: Text) -> NDArray[np.int32]:
    return asked.spec.tokenized(source, network.tokenizer).ids


def _knock_outs(keep: Keep, asked: StoppedResult, network: LanguageModel, source: Text) -> Iterator[float]:
    heads, policy = heads_of(network, asked.settings["layer"]), parse(asked.spec.policies[0])
    ids, done = _ids(asked, network, source), 0
    for found in kept_knock_outs(keep, network, ids, policy, asked.settings["kind"], heads, asked.known):
        done += isinstance(found, Effect)
        yield done / len(heads)


def _measures(keep: Keep, asked: StoppedResult, network: LanguageModel, source: Text) -> Iterator[float]:
    samples = samples_of_text(source, network.tokenizer, asked.spec, asked.settings["samples"]).ids
    apart = separators_of(network.tokenizer, network.vocabulary)
    how = {"first": asked.settings["first"], "separators": apart, "known": asked.known}
    for measured in kept_measures(keep, network, samples, **how):
        yield len(measured.median) / len(samples)


def _costs(keep: Keep, asked: StoppedResult, network: LanguageModel, source: Text) -> Iterator[float]:
    costs = KeptCosts(network, _ids(asked, network, source), asked.spec.policies, asked.known)
    for _ in costs.steps(keep):
        whole = costs.readings + (costs.share if costs.readings < READINGS else 0)
        yield (whole + len(costs.windows) / len(SIZES)) / (READINGS + 1)


def _recall(keep: Keep, asked: StoppedResult, network: LanguageModel, source: Text) -> Iterator[float]:
    cells, whole = Asked.of(asked.settings).cells(asked.spec), 0
    for answered in kept_answers(keep, network, cells, asked.path):
        whole += answered.whole
        yield whole / len(cells)


def _verdict(keep: Keep, asked: StoppedResult, network: LanguageModel, source: Text) -> Iterator[float]:
    plan = Plan.of(asked.spec, asked.settings)
    for done, _ in enumerate(kept_cells(keep, network, plan, asked.path), 1):
        yield done / len(plan.cells)
