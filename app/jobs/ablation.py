"""Ablation: what the sink of each head is worth, one head after the other."""

import math
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

from analysis import texts
from analysis.experiments.ablation import Effect, heads_of, kept_knock_outs
from analysis.policies import parse
from analysis.runs.spec import Spec

from .loading import Models
from .result import ResultJob


@dataclass(frozen=True)
class AblationSnapshot:
    """What is known so far, of how many heads in all, and the seconds that it took."""

    effects: tuple[Effect, ...] = ()
    total: int = 0
    seconds: float = 0.0
    passes: float = 0.0
    """Passes over the text, with the share of the present one; the first pass knocks nothing out."""
    begun: int = 0
    """How many of these were made before this job."""


class AblationJob(ResultJob):
    """Knocks out the sink of one head after the other, and keeps what the text then costs more."""

    noun, keeps = "knock-outs", "knockouts"
    snapshot: AblationSnapshot

    def __init__(
        self, spec: Spec, text: texts.Text, kind: str, layer: int | None, models: Models, resumes: str = ""
    ) -> None:
        super().__init__(spec, text, models, resumes)
        self.kind, self.layer = kind, layer
        self.snapshot = self._found = AblationSnapshot()

    @property
    def settings(self) -> dict[str, Any]:
        """What is taken away, and of which layer."""
        return {"kind": self.kind, "layer": self.layer}

    @property
    def effects(self) -> tuple[Effect, ...]:
        """Effects known so far, in the order of the heads."""
        return self.snapshot.effects

    @property
    def total(self) -> int:
        """Heads to knock out in all."""
        return self.snapshot.total

    @property
    def share(self) -> float:
        """The share of all passes that is done, 0 to 1."""
        found = self.snapshot
        return found.passes / (found.total + 1) if found.total else 0.0

    @property
    def seconds_left(self) -> float | None:
        """An estimate of the seconds that remain; None before a tenth of a pass is done."""
        found, made = self.snapshot, self.snapshot.passes - self.snapshot.begun
        return (found.total + 1 - found.passes) * found.seconds / made if made > 0.1 else None

    def take_snapshot(self) -> AblationSnapshot:
        """What is known so far."""
        return self._found

    def _steps(self) -> Generator[None, None, None]:
        model = self._load()
        heads = heads_of(model, self.layer)
        read = self._tokenize(self.text, model)
        ids = read.ids
        self._found = AblationSnapshot(total=len(heads))
        known = self._open(model, read)
        self._set("running")
        began = time.monotonic()
        policy, begun = parse(self.spec.policies[0]), None
        for result in kept_knock_outs(self._result.write, model, ids, policy, self.kind, heads, known):
            found, seconds = self._found, self._found.seconds + time.monotonic() - began
            if isinstance(result, Effect):
                self._found = replace(found, effects=(*found.effects, result), seconds=seconds)
            else:
                begun = math.ceil(result) - 1 if begun is None else begun
                self._found = replace(found, passes=result, begun=begun, seconds=seconds)
            yield
            began = time.monotonic()
