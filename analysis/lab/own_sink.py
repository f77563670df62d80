"""Trains the tiny model with learned sinks that comes with Sinkscope, on the bundled plays but Hamlet.

It is gpt-oss in small, as transformers has it (OpenAI 2025, arXiv:2508.10925): every head has learned one more logit,
whose weight goes to no token.  No text begins with a token of its own, since a head then finds its way out there: the
softmax of transformer.py with a learned logit does (docs/pages.md).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F
from transformers import GptOssConfig, GptOssForCausalLM, PreTrainedTokenizerFast

from .. import SETUP, files
from ..texts.sources import plays, read
from ..texts.vocabulary import learned

HELD_OUT = "hamlet"
VOCABULARY, LENGTH, BATCH, STEPS = 1024, 128, 16, 1000
RATE, SINK_RATE, DECAY, WARM, CLIP = 3e-3, 5e-2, 0.1, 100, 1.0
"""Learning rates of AdamW, of all weights and of the sinks: a logit that is to weigh as much as a hundred tokens has a
long way to go."""


class Written(NamedTuple):
    """The plays as the model reads them."""

    tokenizer: Tokenizer
    ids: NDArray[np.int64]
    """Of all plays but the one that is held out, one behind the other, [tokens]."""


def written() -> Written:
    """The plays that it is trained on.  Raises ValueError where they are not installed."""
    texts = [read(name).content or "" for name in plays() if name != HELD_OUT]
    if not texts:
        raise ValueError(f"the bundled plays are not installed: run {SETUP}")
    tokenizer = learned(texts, VOCABULARY)
    return Written(tokenizer, np.concatenate([np.array(e.ids, np.int64) for e in tokenizer.encode_batch(texts)]))


def network(vocabulary: int = VOCABULARY) -> GptOssForCausalLM:
    """The model before it is trained: the same every time."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 128, "intermediate_size": 128, "head_dim": 32}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 2}
    # All layers see the whole text, and no token begins one.
    sizes |= {"layer_types": ["full_attention"] * 2, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    sizes |= {"max_position_embeddings": LENGTH, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    config = GptOssConfig(vocab_size=vocabulary, tie_word_embeddings=True, initializer_range=0.05, **sizes)
    model = GptOssForCausalLM(config)
    for sink in sinks_of(model):
        nn.init.zeros_(sink)
    return model


def sinks_of(model: GptOssForCausalLM) -> list[nn.Parameter]:
    """The learned logits of each layer, [heads]."""
    return [p for name, p in model.named_parameters() if name.endswith(".sinks")]


def train(model: GptOssForCausalLM, ids: NDArray[np.int64], steps: int) -> Iterator[float]:
    """Train a model on stretches of a text; tells the loss of each step, in nats a token."""
    sinks = sinks_of(model)
    others = [p for p in model.parameters() if all(p is not sink for sink in sinks)]
    groups: list[dict[str, Any]] = [
        {"params": others, "rate": RATE, "weight_decay": DECAY},
        {"params": sinks, "rate": SINK_RATE, "weight_decay": 0.0},
    ]
    optimizer, rng = torch.optim.AdamW(groups, betas=(0.9, 0.95)), np.random.default_rng(1)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * min(1, (step + 1) / WARM) * (1 - step / steps)
        begins = rng.integers(0, len(ids) - LENGTH - 1, BATCH)
        batch = torch.from_numpy(ids[begins[:, None] + np.arange(LENGTH + 1)])
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        yield float(loss.detach())


def save(model: GptOssForCausalLM, tokenizer: Tokenizer, place: Path) -> None:
    """Put a model and its tokenizer into a new folder, in bfloat16.

    Raises ValueError where it holds something, or the disk does not take it.
    """
    files.new_folder(place)
    try:
        model.bfloat16().save_pretrained(place)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=LENGTH).save_pretrained(place)
    except (OSError, SafetensorError) as e:
        raise files.unwritten(place, e if isinstance(e, OSError) else OSError(str(e))) from e


def check_room(model: GptOssForCausalLM, place: Path) -> None:
    """Raises ValueError where a disk has no room for a model and its tokenizer, which is the smaller."""
    files.check_room(place, 2 * 2 * sum(p.numel() for p in model.parameters()), "this model")
