"""A tiny random model of every family, and what the engine must say of it.  `make families` prints a line for each.

With it a new transformers release is tried in a minute: a family passes, or the line says what differs.
"""

import re
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from analysis.families import FAMILIES
from analysis.policies import Dense
from analysis.stream import open_lanes

README = Path(__file__).parents[1] / "README.md"
TOKENS = 60
SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {
    "num_local_experts": 4,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
SLIDING = {"sliding_window": 20}
WITHOUT = ("num_key_value_heads", "head_dim")
"""Settings that families without groups of heads, or with a size of their own, do not take."""
OWN: dict[str, tuple[dict, tuple[str, ...]]] = {
    **dict.fromkeys(("mistral", "ministral", "gemma2", "gemma3_text", "olmo3", "exaone4", "cohere2"), (SLIDING, ())),
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe"), (EXPERTS, ())),
    "gpt_oss": (EXPERTS | SLIDING, ()),
    "gpt_neox": ({}, WITHOUT),
    "phi": ({"partial_rotary_factor": 0.5}, ("head_dim",)),
    "stablelm": ({"partial_rotary_factor": 0.5}, ("head_dim",)),
    "persimmon": ({"partial_rotary_factor": 0.5}, WITHOUT),
    "falcon": ({"new_decoder_architecture": True, "num_kv_heads": 2}, WITHOUT),
    "ministral3": (
        {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "llama_4_scaling_beta": 0.1,
                "original_max_position_embeddings": 128,
            }
        },
        (),
    ),
    "bloom": ({}, WITHOUT),
    "gpt2": ({}, WITHOUT),
    "opt": ({"ffn_dim": 64, "word_embed_proj_dim": 32}, WITHOUT),
}


def tiny(family: str, implementation: str = "eager", **more) -> PreTrainedModel:
    """A random model of this family whose attention is uneven enough that a wrong place shows."""
    if family == "mpt":
        sizes = {"d_model": 32, "n_heads": 4, "n_layers": 4, "vocab_size": 97, "max_seq_len": 512, "expansion_ratio": 2}
    else:
        own, without = OWN.get(family, ({}, ()))
        sizes = {k: v for k, v in SMALL.items() if k not in without} | own
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**sizes | more)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=implementation).eval().requires_grad_(False)
    for parameter in model.parameters():
        # Norms too: a norm behind the rotation commutes with it only while all its weights are equal.
        parameter.mul_(4) if parameter.ndim > 1 else parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def own_nll(model: PreTrainedModel, tokens: np.ndarray) -> np.ndarray:
    """NLL of tokens 1 … by the family's own forward pass."""
    ids = torch.as_tensor(tokens)[None]
    logits = torch.log_softmax(model(ids, use_cache=False).logits[0, :-1].float(), -1)
    return -logits.gather(-1, ids[0, 1:, None])[:, 0].numpy()


def our_nll(model: PreTrainedModel, tokens: np.ndarray, chunk: int, policy=None) -> np.ndarray:
    lane = open_lanes(model, tokens, [policy or Dense()])[0]
    parts = []
    while not lane.done:
        parts.append(lane.read(chunk).nll)
    return np.concatenate(parts)


def words(count: int = TOKENS) -> np.ndarray:
    return np.random.default_rng(0).integers(3, 90, count)


def table() -> str:
    """The families as the README lists them."""
    rows = [f"| `{name}` | {family.positions} | {family.note} |" for name, family in FAMILIES.items()]
    return "\n".join(("| Family | Positions | What is particular |", "|---|---|---|", *rows, ""))


def main() -> None:
    logging.set_verbosity_error()
    wrong = 0
    for name, family in FAMILIES.items():
        try:
            model, tokens = tiny(name), words()
            apart = max(float(np.abs(our_nll(model, tokens, n) - own_nll(model, tokens)).max()) for n in (1, 16))
            verdict = "pass" if apart <= 1e-4 else f"differs by {apart:.1e}"
        except Exception as e:
            verdict = f"{type(e).__name__}: {' '.join(str(e).split())[:120]}"
        wrong += verdict != "pass"
        print(f"{name:<14} {family.positions:<8} {family.note:<52} {verdict}", flush=True)
    print(f"{len(FAMILIES) - wrong} of {len(FAMILIES)} families pass")
    README.write_text(
        re.sub(r"\| Family \|.*?\n(?!\|)", lambda _: table(), README.read_text("utf-8"), flags=re.S), "utf-8"
    )
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
