"""Gemma 3 270M, as `make gemma` installs it, gives the numbers of transformers' own pass over the same file."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from analysis import files, texts
from analysis.engine.stream import stream
from analysis.models import gemma
from analysis.models.loading import load
from analysis.policies import parse

pytestmark = pytest.mark.gemma
TOKENS = 1000
"""Half of them come after the end of the first sliding window, of 512 tokens."""


@pytest.fixture(scope="module")
def model():
    return load(gemma.NAME, device="cpu")


@pytest.fixture(scope="module")
def file(model) -> dict:
    """Where transformers finds the joined file."""
    return {"pretrained_model_name_or_path": files.cache_folder(), "gguf_file": gemma.FILE, "local_files_only": True}


@pytest.fixture(scope="module")
def ids(model):
    return texts.tokenize(texts.read("hamlet"), model.tokenizer, limit=TOKENS)


def nlls(model, ids, policy: str, chunk: int) -> np.ndarray:
    return np.concatenate([step.nll for step in stream(model, ids, [parse(policy)], chunk=chunk)])[: len(ids) - 1]


def perplexity(nll: np.ndarray) -> float:
    return float(np.exp(nll.mean()))


def test_it_is_what_its_file_is(model):
    assert model.sha256 == gemma.SHA256 and model.family == "gemma3_text"
    assert (model.layers, model.heads, model.kv_heads, model.grouping) == (18, 4, 1, "MQA")
    config = model.network.config
    assert config.sliding_window == 512 and config.layer_types.count("sliding_attention") == 15
    assert texts.opening(model.tokenizer) == [model.tokenizer.bos_token_id]


def test_texts_are_the_tokens_of_transformers_own_tokenizer(file, ids):
    own = AutoTokenizer.from_pretrained(**file)
    assert ids.tolist() == own(texts.read("hamlet").content)["input_ids"][:TOKENS]


def test_dense_and_window_equal_transformers_own_pass(model, file, ids):
    own = AutoModelForCausalLM.from_pretrained(**file, dtype=torch.float32, attn_implementation="eager").eval()
    at = torch.arange(len(ids))
    back = at[:, None] - at
    for policy, most in (("dense", len(ids)), ("window:window=128", 128)):
        masks = {
            kind: torch.zeros(len(ids), len(ids)).masked_fill((back < 0) | (back > most) | (back >= own_most), -1e38)
            for kind, own_most in (("full_attention", len(ids)), ("sliding_attention", 512))
        }
        with torch.no_grad():
            logits = own(torch.tensor(ids)[None], attention_mask={k: m[None, None] for k, m in masks.items()}).logits
        expected = -logits[0, :-1].log_softmax(-1)[at[:-1], torch.tensor(ids[1:])].numpy()
        for chunk in (32, 512):
            np.testing.assert_allclose(nlls(model, ids, policy, chunk), expected, atol=1e-3)


def test_its_sink_is_bos(model, ids):
    """A window that has lost BOS reads twice as badly as one that keeps it."""
    found = {p: perplexity(nlls(model, ids[:700], p, 512)) for p in POLICIES}
    assert found == pytest.approx(POLICIES, rel=0.01)


POLICIES = {"dense": 17.3, "window:window=128": 39.5, "streaming:sinks=4,window=124": 20.3}
