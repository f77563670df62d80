"""How the next token of an answer is chosen."""

from typing import Any

import torch
from torch import Tensor
from transformers.generation import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..metrics import check_finite
from ..runs.spec import Sampling

PENALISED = 1024
"""Newest tokens to which the repetition penalty looks back, so that a token's time does not grow."""
LEAST = 1e-30
"""The least that logits are divided by: less makes infinities of them, and this leaves one token, the most probable."""


class Chooser:
    """Chooses the next token: transformers' own processors, and random numbers of our own seed."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._processors = LogitsProcessorList()
        if sampling.repetition_penalty != 1:
            self._processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
        if sampling.temperature > 0:
            self._processors.append(TemperatureLogitsWarper(max(float(sampling.temperature), LEAST)))
            if sampling.top_k:
                self._processors.append(TopKLogitsWarper(sampling.top_k))
            if sampling.top_p < 1:
                self._processors.append(TopPLogitsWarper(sampling.top_p))
        self.random = torch.Generator().manual_seed(sampling.seed)
        """Gives one number a token, so that answers are the same whatever the chunks were."""

    def scores(self, tokens: Tensor, logits: Tensor) -> Tensor:
        """Logits [vocabulary] with the penalty of repetition, the temperature and what cuts off the improbable."""
        if not self._processors:
            return logits
        # transformers asks for LongTensor, a type that no tensor has.
        ids: Any = tokens[None, -PENALISED:].cpu()
        return self._processors(ids, logits[None])[0]

    def __call__(self, tokens: Tensor, logits: Tensor) -> int:
        """The id of the next token: tokens [tokens] so far, logits [vocabulary].

        Raises ValueError where a logit, or what the settings make of it, is NaN or infinite; one of -inf is never said.
        """
        check_finite(float(logits.max()))
        logits = self.scores(tokens, logits)
        if not logits.max().isfinite():
            raise ValueError(
                "these settings make logits too large to be compared: choose a repetition penalty nearer to 1, or "
                "another temperature"
            )
        if self.sampling.temperature == 0:
            return int(logits.argmax())
        draw = torch.rand(1, generator=self.random, dtype=torch.float64)
        probabilities, order = torch.softmax(logits.double(), -1).sort(descending=True, stable=True)
        place = int(torch.searchsorted(probabilities.cumsum(-1), draw))
        return int(order[min(place, int((probabilities > 0).sum()) - 1)])
