"""Live knock-outs: what each head's sink is worth, one head after the other, while people look at it."""

import time

from analysis import texts
from analysis.ablation import Effect, knock_out_each
from analysis.policies import parse
from analysis.record import Spec

from .runner import Live, Models


class Ablation(Live):
    """Knocks out the sink of one head after the other and keeps what each then costs."""

    def __init__(self, spec: Spec, text: texts.Text, kind: str, layer: int | None, models: Models) -> None:
        super().__init__(spec, models)
        self.text, self.kind, self.layer = text, kind, layer
        self.effects: list[Effect] = []
        self.total = 0
        """Heads that there are to knock out."""
        self.seconds = 0.0
        """Time spent on those that are done."""

    @property
    def ranked(self) -> list[Effect]:
        """What is known, largest first."""
        return sorted(self.effects, key=lambda e: -e.excess)

    @property
    def seconds_left(self) -> float | None:
        """An estimate; None before the first head is done."""
        return (self.total - len(self.effects)) * self.seconds / len(self.effects) if self.effects else None

    def _run(self) -> None:
        model = self._models.get(self.spec, self.tell)
        if self.layer is not None and self.layer >= model.layers:
            raise ValueError(f"there is no layer {self.layer}: layers are 0 to {model.layers - 1}")
        ids = self._tokens(self.text, model)
        layers = range(model.layers) if self.layer is None else [self.layer]
        heads = [(layer, head) for layer in layers for head in range(model.heads)]
        self.model, self.total = model, len(heads)
        self._set("running")
        began = time.monotonic()
        for effect in knock_out_each(model, ids, parse(self.spec.policies[0]), self.kind, heads):
            self.seconds += time.monotonic() - began
            self.effects.append(effect)
            self._publish()
            self._pause_while_unwatched()
            if self._wanted != "running":
                self._set("stopped")
                return
            began = time.monotonic()
        self._set("finished")
