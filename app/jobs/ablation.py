"""Live knock-outs: what each head's sink is worth, one head after the other, while people look at it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from analysis import texts
from analysis.experiments.ablation import Effect, knock_outs
from analysis.policies import parse
from analysis.runs.folder import Spec

from .runner import Job, Models


@dataclass(frozen=True)
class Found:
    """What is known so far, of how many heads, and in how many seconds it was found."""

    effects: tuple[Effect, ...] = ()
    total: int = 0
    seconds: float = 0.0
    passes: float = 0.0
    """Passes over the text, the one that is under way included; the first reads it as it is."""


class Ablation(Job):
    """Knocks out the sink of one head after the other and keeps what each then costs."""

    called = "knock-outs"
    shown: Found

    def __init__(self, spec: Spec, text: texts.Text, kind: str, layer: int | None, models: Models) -> None:
        super().__init__(spec, models)
        self.text, self.kind, self.layer = text, kind, layer
        self.shown = self._found = Found()

    @property
    def effects(self) -> tuple[Effect, ...]:
        """What is known, in the order of the heads."""
        return self.shown.effects

    @property
    def total(self) -> int:
        """Heads that there are to knock out."""
        return self.shown.total

    @property
    def ranked(self) -> list[Effect]:
        """What is known, largest first."""
        return sorted(self.effects, key=lambda e: -e.excess)

    @property
    def share(self) -> float:
        """How much of all is done."""
        found = self.shown
        return found.passes / (found.total + 1) if found.total else 0.0

    @property
    def seconds_left(self) -> float | None:
        """An estimate; None before a tenth of a pass is done."""
        found = self.shown
        return (found.total + 1 - found.passes) * found.seconds / found.passes if found.passes > 0.1 else None

    def _snapshot(self) -> Found:
        return self._found

    def _steps(self) -> Iterator[None]:
        model = self._load()
        if self.layer is not None and self.layer >= model.layers:
            raise ValueError(f"there is no layer {self.layer}: layers are 0 to {model.layers - 1}")
        ids = self._tokens(self.text, model)
        layers = range(model.layers) if self.layer is None else [self.layer]
        heads = [(layer, head) for layer in layers for head in range(model.heads)]
        self.model, self._found = model, Found(total=len(heads))
        self._set("running")
        began = time.monotonic()
        for told in knock_outs(model, ids, parse(self.spec.policies[0]), self.kind, heads):
            found, seconds = self._found, self._found.seconds + time.monotonic() - began
            if isinstance(told, Effect):
                self._found = replace(found, effects=(*found.effects, told), seconds=seconds)
            else:
                self._found = replace(found, passes=told, seconds=seconds)
            yield
            began = time.monotonic()
