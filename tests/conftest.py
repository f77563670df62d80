"""What the tests share: a tiny random model, the embedded one, and the official numbers.  No network, no stray files."""

import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

ORACLES = Path(__file__).parent / "oracles"


@pytest.fixture(scope="session")
def tiny_llama() -> LlamaForCausalLM:
    """A random llama whose attention is uneven enough that evicting a token shows."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return model.requires_grad_(False)


@pytest.fixture(scope="session")
def embedded():
    from analysis.models import load

    return load("embedded")


@pytest.fixture(scope="session")
def oracle():
    """Token ids [N + 1] and the official NLL [N] for some sinks and window."""

    def read(sinks: int, window: int) -> tuple[np.ndarray, np.ndarray]:
        with np.load(ORACLES / f"hamlet_{sinks}_{window}.npz") as numbers:
            return numbers["token_ids"], numbers["nll"]

    return read
