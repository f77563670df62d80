"""Ablation: what the sink of each head is worth, one head after the other."""

import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

from analysis import files, texts
from analysis.experiments.ablation import Effect, effects_as_csv, knock_outs
from analysis.policies import parse
from analysis.runs.spec import Spec

from .base import TextJob
from .kept import ResultKeeper
from .loading import Models


@dataclass(frozen=True)
class AblationSnapshot:
    """What is known so far, of how many heads in all, and the seconds that it took."""

    effects: tuple[Effect, ...] = ()
    total: int = 0
    seconds: float = 0.0
    passes: float = 0.0
    """Passes over the text, with the share of the present one; the first pass knocks nothing out."""


class AblationJob(TextJob):
    """Knocks out the sink of one head after the other, and keeps what the text then costs more."""

    noun = "knock-outs"
    snapshot: AblationSnapshot

    def __init__(self, spec: Spec, text: texts.Text, kind: str, layer: int | None, models: Models) -> None:
        super().__init__(spec, models)
        self.text, self.kind, self.layer = text, kind, layer
        self.kept = self._result = ResultKeeper(self.id)
        self.snapshot = self._found = AblationSnapshot()

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked besides the spec, as run.json and addresses say it."""
        return {"kind": self.kind, "layer": self.layer}

    @property
    def text_sha256(self) -> str:
        """Of the text."""
        return self.text.sha256

    @property
    def effects(self) -> tuple[Effect, ...]:
        """Effects known so far, in the order of the heads."""
        return self.snapshot.effects

    @property
    def total(self) -> int:
        """Heads to knock out in all."""
        return self.snapshot.total

    @property
    def ranked(self) -> list[Effect]:
        """Effects known so far, largest first."""
        return sorted(self.effects, key=lambda e: -e.excess)

    @property
    def share(self) -> float:
        """The share of all passes that is done, 0 to 1."""
        found = self.snapshot
        return found.passes / (found.total + 1) if found.total else 0.0

    @property
    def seconds_left(self) -> float | None:
        """An estimate of the seconds that remain; None before a tenth of a pass is done."""
        found = self.snapshot
        return (found.total + 1 - found.passes) * found.seconds / found.passes if found.passes > 0.1 else None

    def take_snapshot(self) -> AblationSnapshot:
        """What is known so far."""
        return self._found

    def _steps(self) -> Generator[None, None, None]:
        model = self._load()
        if self.layer is not None and self.layer >= model.layers:
            raise ValueError(f"there is no layer {self.layer}: layers are 0 to {model.layers - 1}")
        read = self._tokenize(self.text, model)
        ids = read.ids
        layers = range(model.layers) if self.layer is None else [self.layer]
        heads = [(layer, head) for layer in layers for head in range(model.heads)]
        self._use(model)
        self._found = AblationSnapshot(total=len(heads))
        self._result.begin_result("knockouts", self.spec, model, self.text, read, self.settings)
        self._set("running")
        began = time.monotonic()
        for result in knock_outs(model, ids, parse(self.spec.policies[0]), self.kind, heads):
            found, seconds = self._found, self._found.seconds + time.monotonic() - began
            if isinstance(result, Effect):
                self._found = replace(found, effects=(*found.effects, result), seconds=seconds)
                table = effects_as_csv(self._found.effects)
                self._result.write(lambda folder, table=table: files.write(folder.path / "effects.csv", table))
            else:
                self._found = replace(found, passes=result, seconds=seconds)
            yield
            began = time.monotonic()
