"""A tiny random model of every family, and what the engine must say of it.  `make families` prints a line for each.

With it a new transformers release is tried in a minute: a family passes, or the line says what differs.  With `--all`
every causal class of transformers is tried, and docs/families.md says what became of it.
"""

import multiprocessing
import re
import signal
import sys
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from analysis.engine import stream
from analysis.engine.check import adapt
from analysis.engine.stream import open_lanes
from analysis.families import FAMILIES, unreadable
from analysis.families.rotary import Adapted
from analysis.policies import Dense, Streaming, Window

from . import causal
from .naive import kept, standing

MODELS = Path(__file__).parents[1] / "docs" / "models.md"
DOCS = Path(__file__).parents[1] / "docs" / "families.md"
SECONDS = 120
"""After which a class counts as not tried."""
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


PATTERNS = {"gemma2", "gemma3_text", "gpt_oss", "olmo3", "smollm3", "cohere2", "exaone4"}
"""Families whose layers are of several kinds, in turns of up to four."""


def tiny(family: str, implementation: str = "eager", **more) -> PreTrainedModel:
    """A random model of this family whose attention is uneven enough that a wrong position shows."""
    if family == "mpt":
        sizes = {"d_model": 32, "n_heads": 4, "n_layers": 4, "vocab_size": 97, "max_seq_len": 512, "expansion_ratio": 2}
    else:
        own, without = OWN.get(family, ({}, ()))
        sizes = {k: v for k, v in SMALL.items() if k not in without} | own
    return causal.build(CONFIG_MAPPING[family](**sizes | more), implementation)


_built: dict[str, PreTrainedModel] = {}


def shared(family: str, **more) -> PreTrainedModel:
    """The model of `tiny`, built once for all tests: so it is checked and traced once too.  Nobody may change it."""
    asked = repr((family, sorted(more.items())))
    if asked not in _built:
        _built[asked] = tiny(family, **more)
    return _built[asked]


def few_layers(family: str, **more) -> PreTrainedModel:
    """The shared model with no more layers than the family has kinds of, and two at the least."""
    if family not in PATTERNS:
        more = {"n_layers" if family == "mpt" else "num_hidden_layers": 2} | more
    return shared(family, **more)


def twin(network: PreTrainedModel) -> Adapted:
    """The adapted twin of a network that tests share, made and checked once for all of them.  Nobody may change it."""
    return stream.adapt(network)


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


class Book:
    """The rule as it is written: one query after the other, the keys that it is to meet, each at its own position."""

    def __init__(self, model, sinks: int, window: int, count: int) -> None:
        self.model, self.reach = model, [kept(t, sinks, window) for t in range(count)]

    def attend(self, attention, query, key, value, *, scaling=None, softcap=None, sliding_window=None, s_aux=None, **_):
        model, groups = self.model, query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        outs, at = [], standing(model, attention, len(self.reach))
        for t, positions in enumerate(self.reach):
            slots = torch.arange(len(positions))
            k = model.rotate(attention, key[:, :, positions], at(slots))
            q = model.rotate(attention, query[:, :, [t]], at(slots[-1:]))
            s = q @ k.transpose(-1, -2) * (scaling or query.shape[-1] ** -0.5)
            s = s if softcap is None else softcap * torch.tanh(s / softcap)
            if sliding_window is not None:
                s = s.masked_fill(torch.tensor(positions) <= t - sliding_window, float("-inf"))
            if s_aux is not None:
                s = torch.cat((s, s_aux.view(1, -1, 1, 1)), -1)
            outs.append(torch.softmax(s, -1)[..., : len(positions)] @ value[:, :, positions])
        return torch.cat(outs, 2).transpose(1, 2)


def words(count: int = TOKENS) -> np.ndarray:
    return np.random.default_rng(0).integers(3, 90, count)


def table() -> str:
    """The families as docs/models.md lists them."""
    rows = [f"| `{name}` | {family.positions} | {family.note} |" for name, family in FAMILIES.items()]
    return "\n".join(("| Family | Positions | What is particular |", "|---|---|---|", *rows, ""))


def main() -> None:
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if sys.argv[1:] == ["--all"]:
        sys.exit(everything() > 0)
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
    MODELS.write_text(
        re.sub(r"\| Family \|.*?\n(?!\|)", lambda _: table(), MODELS.read_text("utf-8"), flags=re.S), "utf-8"
    )
    sys.exit(wrong > 0)


class Trial(NamedTuple):
    """What became of one causal class."""

    family: str
    verdict: str
    """exact, refused, wrong or untried."""
    words: str
    """Its positions where it is exact, and why not where it is not."""


def trial(name: str, **more) -> Trial:
    """Whether a tiny random model of that class is read exactly, or refused in a sentence."""
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(SECONDS)
    try:
        config = causal.config_of(name, **more)
        if why := unreadable(config):
            return Trial(name, "refused", why)
        model = causal.build(config)
        try:
            adapted = adapt(model)
        except ValueError as e:
            return Trial(name, "refused", str(e))
        apart = farthest(model, adapted)
        if apart <= 1e-4:
            return Trial(name, "exact", adapted.positions.name)
        return Trial(name, "wrong", f"differs by {apart:.1e} nats")
    except (Exception, TooLate) as e:
        return Trial(name, "untried", f"{type(e).__name__}: {' '.join(str(e).split())[:160]}")
    finally:
        signal.alarm(0)


class TooLate(BaseException):
    """No Exception, so that nothing on the way takes it for a fault of the family."""


def _late(*_) -> None:
    raise TooLate(f"took more than {SECONDS} seconds")


def farthest(model: PreTrainedModel, adapted: Adapted) -> float:
    """The largest difference of any token's NLL: dense in chunks of several sizes, decoded, under sinks + window."""
    tokens = words()
    own, apart = own_nll(model, tokens), []
    for chunk in (1, 7, 16, TOKENS):
        apart.append(np.abs(our_nll(adapted, tokens, chunk) - own).max())
    policies = [(Dense(), own)]
    if not adapted.positions.fixed:
        ids = torch.as_tensor(tokens)[None]
        for policy in (Streaming(4, 12), Window(12)):
            logits = adapted.forward(ids[:, :-1], Book(adapted, policy.sinks, policy.window, TOKENS - 1))[0].float()
            expected = -torch.log_softmax(logits, -1).gather(-1, ids[0, 1:, None])[:, 0].numpy()
            apart.append(np.abs(our_nll(adapted, tokens, 16, policy) - expected).max())
            policies.append((policy, expected))
    for policy, expected in policies:
        lane = open_lanes(adapted, tokens[:40], [policy])[0]
        while not lane.done:
            lane.read(16)
        decoded = [lane.next(lambda _, token=token: int(token)).nll[0] for token in tokens[40:]]
        apart.append(np.abs(np.array(decoded) - expected[39:]).max())
    return float(max(apart))


def everything() -> int:
    """Try every causal class that transformers has, write what became of it to docs/families.md, and say how many are
    not as they must be."""
    names = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    jobs = [(name, {}) for name in names] + [(n, m) for n, m in causal.VARIANTS.items()]
    began = time.perf_counter()
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn"), initializer=_quiet) as pool:
        rows = []
        for (_, more), row in zip(jobs, pool.map(_trial, jobs), strict=True):
            rows.append(row)
            print(f"{row.family:<26} {row.verdict:<8} {row.words}{'  (variant)' if more else ''}", flush=True)
    tried, variants = rows[: len(names)], rows[len(names) :]
    DOCS.parent.mkdir(exist_ok=True)
    DOCS.write_text(document(tried, variants), "utf-8")
    counts = {v: sum(r.verdict == v for r in rows) for v in ("exact", "refused", "wrong", "untried")}
    print(", ".join(f"{n} {v}" for v, n in counts.items()), f"in {time.perf_counter() - began:.0f} s")
    return counts["wrong"] + counts["untried"]


def _trial(job: tuple[str, dict]) -> Trial:
    return trial(job[0], **job[1])


def _quiet() -> None:
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)


def document(tried: list[Trial], variants: list[Trial]) -> str:
    """What reads exactly, what is refused and why, as docs/families.md has it."""
    exact, refused, rest = (
        [r for r in tried if r.verdict in v] for v in (("exact",), ("refused",), ("wrong", "untried"))
    )
    lines = [
        "# Model families",
        "",
        f"Every causal class of transformers {transformers.__version__}, tried with a tiny random model: {len(tried)} "
        f"classes, {len(exact)} read exactly, {len(refused)} refused, {len(rest)} neither. Written by "
        "`make families-all`.",
        "",
        "*Exactly* means: every token's NLL is within 1e-4 nats of the model's own forward pass, dense in chunks of 1, "
        "7, 16 and 60 tokens and token by token, and within 1e-4 of the rule as it is written under sinks + window. A "
        "refused family is told so in one sentence when it is loaded. A family can have models of both kinds: each is "
        "tried again when it is loaded.",
        "",
        "## Read exactly",
        "",
        "| Family | Positions | What is particular |",
        "|---|---|---|",
        *(f"| `{r.family}` | {r.words} | {FAMILIES[r.family].note if r.family in FAMILIES else ''} |" for r in exact),
        "",
        "Keys of families whose positions are *learned* or *not movable* stay where they were read: these read dense "
        "and recompute only.",
        "",
        "## Refused",
        "",
        "| Family | Why |",
        "|---|---|",
        *(f"| `{r.family}` | {_why(r)} |" for r in refused),
        "",
    ]
    if rest:
        lines += ["## Neither", "", "| Family | What happened |", "|---|---|"]
        lines += [*(f"| `{r.family}` | {r.verdict}: {_cell(r.words)} |" for r in rest), ""]
    lines += ["## Other ways of some families", "", "| Family | Settings | |", "|---|---|---|"]
    for row in variants:
        settings = ", ".join(f"{k}={v}" for k, v in causal.VARIANTS[row.family].items())
        lines.append(f"| `{row.family}` | {_cell(settings)} | {row.verdict}: {_why(row)} |")
    return "\n".join((*lines, ""))


def _why(row: Trial) -> str:
    return _cell(re.sub(r"^the family '[^']*' is not supported yet: ", "", row.words))


def _cell(words: str) -> str:
    return words.replace("|", "\\|")


if __name__ == "__main__":
    main()
