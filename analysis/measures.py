"""What is measured of every head over many short texts, as papers on the sink do."""

import numpy as np
import torch
from numpy.typing import NDArray

from .attention import Reading
from .models import LanguageModel
from .reach import Reach
from .rotary import Adapted

TOGETHER = 16
"""Texts that go through the model in one pass."""


def samples_of(tokens: NDArray[np.int32], count: int, length: int) -> NDArray[np.int32]:
    """`count` stretches of `length` tokens, [count, length], evenly over a text; they overlap where it is short."""
    if len(tokens) < length:
        raise ValueError(
            f"the text has {len(tokens)} tokens, and samples of {length} are asked for: choose a longer one"
        )
    begins = np.linspace(0, len(tokens) - length, count).astype(int)
    return tokens[begins[:, None] + np.arange(length)]


def attention_to_first(model: LanguageModel | Adapted, samples: NDArray[np.int32]) -> NDArray[np.float32]:
    """α_1 of every head in each text, [samples, layers, heads]: the mean attention that its first token gets.

    `samples` [samples, tokens]: each is a text of its own (Gu et al. 2024, "When Attention Sink Emerges").
    """
    adapted = model.adapted if isinstance(model, LanguageModel) else model
    found = []
    for begin in range(0, len(samples), TOGETHER):
        ids = torch.as_tensor(samples[begin : begin + TOGETHER].astype(np.int64), device=adapted.device)
        nowhere = torch.zeros(len(ids), dtype=torch.int64, device=adapted.device)
        reading = Reading(adapted, 0, 1, Reach(0, 0, None, "text"), None, nowhere)
        adapted.forward(ids, reading, last=1)
        mass = torch.stack([m.view(len(m), len(ids), -1).mean(-1).T.cpu() for m in reading.mass], 1)
        found.append(mass.numpy())
    return np.concatenate(found)
