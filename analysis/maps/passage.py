"""A short text that was read whole, and the rows of its last token in every head."""

import numpy as np
from numpy.typing import NDArray

from ..engine.stream import open_lanes
from ..models.language_model import LanguageModel
from ..policies import parse
from .attention_row import AttentionRow
from .recent import head_row


class Passage:
    """A short text that was read whole, with what every head did in it.

    `tokens`: token ids, [tokens].  Raises ValueError where there are fewer than two.
    """

    def __init__(self, model: LanguageModel, tokens: NDArray[np.int32]) -> None:
        self.tokens = np.asarray(tokens, np.int32)
        # The engine predicts every token from those before it, and so reads all but the last: one more is put behind.
        more = np.append(self.tokens, self.tokens[-1:])
        self._lane = open_lanes(model, more, [parse("dense")], sink_tokens=1, history=len(tokens))[0]
        passes = []
        self._lane.context.watch = passes.append
        self.sink_weights: NDArray[np.float32] = self._lane.read(len(tokens)).sink_mass
        """Weight on token 0 of every query, [layers, heads, queries]."""
        (self.attended,) = passes
        """Queries and keys before rotation, and values, of every layer."""

    @property
    def sink_mass(self) -> NDArray[np.float32]:
        """Mean weight on token 0 of every query but the first, which sees nothing else: [layers, heads]."""
        return self.sink_weights[..., 1:].mean(-1)

    def row(self, layer: int, head: int) -> AttentionRow:
        """The last token's row.  Raises ValueError where there is no such head."""
        row = head_row(self._lane, layer, head, len(self.tokens) - 1)
        assert row is not None, "a lane that holds all of its text has all rows"
        values = self.attended.values[layer][0]
        group = head // (self.attended.queries[layer].shape[1] // values.shape[0])
        return AttentionRow(row.logits, values[group].float().cpu().numpy())
