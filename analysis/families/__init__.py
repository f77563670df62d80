"""The model families that can be read, and the adapters of those whose attention is their own.

Everything else goes through one mechanism (rotary.py), so a family that is not listed may well work: whatever a model
is, it is read only if a short text gets the numbers that its own forward pass gives.
"""

from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from .. import rotary
from ..attention import Reading
from ..positions import Rotary
from ..reach import Reach
from ..rotary import Adapted
from ..weights import Int4, Int8
from . import bloom, falcon, mpt

ADAPTERS: dict[str, rotary.Adapter] = {"falcon": falcon.adapt, "bloom": bloom.adapt, "mpt": mpt.adapt}


class Family(NamedTuple):
    """What is particular about a family."""

    positions: str
    note: str = ""


FAMILIES: dict[str, Family] = {
    "llama": Family("rotary", "llama3 scaling"),
    "mistral": Family("rotary", "sliding window"),
    "ministral": Family("rotary", "sliding window in some layers"),
    "qwen2": Family("rotary"),
    "qwen3": Family("rotary", "normalised queries and keys"),
    "gemma": Family("rotary"),
    "gemma2": Family("rotary", "sliding window in some layers, soft cap"),
    "gemma3_text": Family("rotary", "two rotaries, sliding window in some layers"),
    "phi": Family("rotary", "part of each head"),
    "phi3": Family("rotary"),
    "gpt_neox": Family("rotary", "part of each head"),
    "stablelm": Family("rotary", "part of each head"),
    "persimmon": Family("rotary", "part of each head"),
    "nemotron": Family("rotary", "part of each head"),
    "olmo": Family("rotary"),
    "olmo2": Family("rotary"),
    "olmo3": Family("rotary", "sliding window in some layers"),
    "smollm3": Family("rotary", "some layers without"),
    "gpt_oss": Family("rotary", "YaRN, learned sinks, sliding window in some layers, experts"),
    "cohere": Family("rotary", "interleaved"),
    "cohere2": Family("rotary", "interleaved, some layers without"),
    "granite": Family("rotary"),
    "glm": Family("rotary", "part of each head"),
    "glm4": Family("rotary", "part of each head"),
    "starcoder2": Family("rotary"),
    "mixtral": Family("rotary", "experts"),
    "qwen2_moe": Family("rotary", "experts"),
    "qwen3_moe": Family("rotary", "experts"),
    "exaone4": Family("rotary", "sliding window, some layers without"),
    "ernie4_5": Family("rotary"),
    "helium": Family("rotary"),
    "seed_oss": Family("rotary"),
    "apertus": Family("rotary"),
    "bitnet": Family("rotary"),
    "arcee": Family("rotary"),
    "ministral3": Family("rotary", "queries grow with the place in the text"),
    "hunyuan_v1_dense": Family("rotary, not movable", "norms behind the rotation; dense and recompute only"),
    "falcon": Family("rotary", "or ALiBi; attention adapted"),
    "bloom": Family("ALiBi", "attention adapted"),
    "mpt": Family("ALiBi", "attention adapted"),
    "gpt2": Family("learned", "dense and recompute only"),
    "opt": Family("learned", "dense and recompute only"),
}


def adapt(network: PreTrainedModel) -> Adapted:
    """An adapted twin of a network, saying what it says.  Raises ValueError, naming the family, where there is none."""
    adapted = rotary.adapt(network, ADAPTERS)
    if network.device.type == "meta" or not (wrong := _differs(network, adapted)):
        return adapted
    if isinstance(adapted.positions, Rotary):
        # Something follows the rotation (HunYuan normalises behind it): then its keys stay where they were read.
        adapted = rotary.adapt(network, bound=True)
        if not _differs(network, adapted):
            return adapted
    raise ValueError(wrong)


def _differs(network: PreTrainedModel, adapted: Adapted) -> str:
    """A sentence where, on a short text, the twin gives other numbers than the network; empty where it does not."""
    vocabulary = network.get_input_embeddings().num_embeddings
    ids = torch.linspace(0, vocabulary - 1, 12, device=network.device).long()[None]
    reading = Reading(adapted, 0, 0, Reach(0, 0, None, "text"), None)
    with torch.inference_mode():
        own, ours = network(input_ids=ids, use_cache=False).logits.float(), adapted.forward(ids, reading).float()
    apart = float((own - ours).abs().max() / own.std().clamp(min=1e-6))
    # Half precision, in which packed weights multiply too, rounds otherwise when sums have another order; a wrong place
    # or a missing term is far beyond either.
    exact = network.dtype == torch.float32 and not any(isinstance(m, Int8 | Int4) for m in network.modules())
    if apart <= (1e-3 if exact else 0.5):
        return ""
    return (
        f"the family {network.config.model_type!r} is not supported yet: its own forward pass gives other numbers "
        f"(by {apart:.2g} standard deviations of the logits)"
    )
