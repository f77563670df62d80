"""The engine on a GPU against transformers' plain pass, its loop, and the machine's matrix products, in bfloat16.

The model has the shape of Llama 3.2 1B and random weights: how long a product takes does not depend on them.  A toy
runs where there is no GPU, too, so that this cannot rot unseen.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from analysis.engine.check import adapt
from analysis.engine.lane import Lane
from analysis.engine.stream import open_lanes
from analysis.families.rotary import Adapted
from analysis.policies import Dense, Policy, Streaming

from .engine import work
from .report import compared, head, line, said
from .sizes import TOY, size

ROUNDS = size(7, 1)
CHUNKS = size((512, 2048, 8192), (16,))
LONG = size((512, 2048), (16,))
CACHES = size((256, 1024), (64,))
FAR = size(65_536, 256)
TOKENS = size(20, 2)
"""Tokens that are decoded at a time."""
PLAIN, LOOP, PRODUCTS = "transformers' plain pass", "transformers' loop", "bfloat16 matrix products"
SHAPE = LlamaConfig(
    vocab_size=size(128_256, 512),
    hidden_size=size(2048, 64),
    intermediate_size=size(8192, 128),
    num_hidden_layers=size(16, 2),
    num_attention_heads=size(32, 4),
    num_key_value_heads=size(8, 2),
    max_position_embeddings=131_072,
    tie_word_embeddings=True,
)


def main() -> None:
    """Measure, or say that there is nothing to measure on."""
    if not (torch.cuda.is_available() or TOY):
        said("no GPU here", "nothing was measured")
        return
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    with device:
        network = LlamaForCausalLM._from_config(SHAPE, dtype=torch.bfloat16).eval().requires_grad_(False)
    network.set_attn_implementation("sdpa")
    model, room = adapt(network), max(FAR + LONG[-1], CACHES[-1] + (ROUNDS + 4) * CHUNKS[-1]) + 8 * TOKENS
    tokens = np.random.default_rng(0).integers(0, SHAPE.vocab_size, room + 1).astype(np.int32)
    ids = torch.as_tensor(tokens.astype(np.int64), device=device)[None]
    parameters = sum(p.numel() for p in network.parameters())
    head(f"{device_name(device)}, {parameters / 1e9:.2f} billion weights, bfloat16")
    peak = products(device)
    line("matrix products of 8,192 rows", peak / 1e12, "", unit="TFLOP/s", digits=0)
    for cache in CACHES:
        reading(model, network, tokens, ids, cache, peak)
        answering(model, network, tokens, ids, Streaming(4, cache - 4), cache)
    far(model, network, tokens, ids)
    line("memory at most", torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else 0, "", unit="GB")


def device_name(device: torch.device) -> str:
    """What the maker calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"


def reading(
    model: Adapted, network: LlamaForCausalLM, tokens: np.ndarray, ids: torch.Tensor, cache: int, peak: float
) -> None:
    """Chunks of a text over a full cache, in turn with the plain pass over as many cached tokens."""
    head(f"4 + {cache - 4}, reading")
    kept = DynamicCache(config=SHAPE)
    plain(network, kept, ids, 0, cache)
    theirs, ours = dict[int, float](), dict[int, float]()
    for chunk in CHUNKS:
        lane = open_lanes(model, tokens, [Streaming(4, cache - 4)])[0]
        while lane.position <= cache + 1 or lane.position <= 2 * chunk:
            lane.read(chunk)
        theirs[chunk], ours[chunk] = in_turn(
            lambda chunk=chunk: plain(network, kept, ids, cache, chunk, crop=True),
            lambda lane=lane, chunk=chunk: lane.read(chunk),
            chunk,
        )
        versus = {"theirs": theirs[chunk], "ours": ours[chunk], "unit": "tokens/s"}
        compared(f"both in chunks of {chunk:,}, with sink mass", PLAIN, **versus)
    best, others = (max(of, key=of.__getitem__) for of in (ours, theirs))
    versus = {"theirs": theirs[others], "ours": ours[best], "unit": "tokens/s"}
    compared(f"chunks of {best:,} and {others:,}", PLAIN, **versus)
    reached = work(model, cache, best) * ours[best]
    compared("all arithmetic", PRODUCTS, theirs=peak / 1e12, ours=reached / 1e12, unit="TFLOP/s")


def answering(
    model: Adapted, network: LlamaForCausalLM, tokens: np.ndarray, ids: torch.Tensor, policy: Policy, cache: int
) -> None:
    """Single tokens, each chosen before the next is read, in turn with transformers' loop over as long a cache."""
    head(f"{policy.label}, {cache:,} cached, answering")
    kept = DynamicCache(config=SHAPE)
    for begin in range(0, cache, 4096):
        plain(network, kept, ids, begin, min(4096, cache - begin))
    lane = open_lanes(model, tokens[: cache + 2], [policy])[0]
    while not lane.done:
        lane.read(4096)
    lane.context.trace()
    theirs, ours = in_turn(lambda: loop(network, kept, ids, cache), lambda: answer(lane), TOKENS)
    compared("one token at a time", LOOP, theirs=theirs, ours=ours, unit="tokens/s")


def far(model: Adapted, network: LlamaForCausalLM, tokens: np.ndarray, ids: torch.Tensor) -> None:
    """A lane that keeps everything, far into a text."""
    head(f"dense, {FAR:,} cached, reading")
    kept = DynamicCache(config=SHAPE)
    for begin in range(0, FAR, 4096):
        plain(network, kept, ids, begin, min(4096, FAR - begin))
    lane = open_lanes(model, tokens, [Dense()])[0]
    while lane.position <= FAR:
        lane.read(2048, upto=FAR + 1)
    for chunk in LONG:
        before = lane.snapshot()

        def read(chunk=chunk, before=before) -> None:
            lane.restore(before)
            lane.read(chunk)

        theirs, ours = in_turn(lambda chunk=chunk: plain(network, kept, ids, FAR, chunk, crop=True), read, chunk)
        lane.restore(before)
        versus = {"theirs": theirs, "ours": ours, "unit": "tokens/s"}
        compared(f"both in chunks of {chunk:,}, with sink mass", PLAIN, **versus)
    del lane, kept
    answering(model, network, tokens, ids, Dense(), FAR)


def plain(
    network: LlamaForCausalLM, kept: DynamicCache, ids: torch.Tensor, begin: int, count: int, *, crop: bool = False
) -> None:
    """Transformers' own forward pass over so many tokens; `crop`: and leave the cache as it was."""
    with torch.inference_mode():
        network(ids[:, begin : begin + count], past_key_values=kept, logits_to_keep=0 if crop else 1)
        if crop:
            kept.crop(-count)


def loop(network: LlamaForCausalLM, kept: DynamicCache, ids: torch.Tensor, cache: int) -> None:
    """So many tokens, each the most probable one after the other; the cache is then as it was."""
    with torch.inference_mode():
        token = ids[:, cache : cache + 1]
        for _ in range(TOKENS):
            logits = network(token, past_key_values=kept).logits[:, -1].float().cpu()
            token = logits.argmax(-1, keepdim=True).to(ids.device)
        kept.crop(-TOKENS)


def answer(lane: Lane) -> None:
    """So many tokens, each the most probable one after the other."""
    for _ in range(TOKENS):
        lane.next(lambda logits: int(logits.argmax()))


def in_turn(theirs: Callable[[], object], ours: Callable[[], object], count: int) -> tuple[float, float]:
    """Tokens per second of two ways to do with so many: medians of turns, after one that is not counted."""
    seconds: tuple[list[float], list[float]] = [], []
    for _ in range(ROUNDS + 1):
        for way, taken in zip((theirs, ours), seconds, strict=True):
            waited()
            began = time.perf_counter()
            way()
            waited()
            taken.append(time.perf_counter() - began)
    return count / float(np.median(seconds[0][1:])), count / float(np.median(seconds[1][1:]))


def waited() -> None:
    """Wait for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def products(device: torch.device) -> float:
    """Floating-point operations per second of large square products of random numbers."""
    rows = size(8192, 128)
    a, b = (torch.randn(rows, rows, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(ROUNDS + 3):
        waited()
        began = time.perf_counter()
        a @ b
        waited()
        seconds.append(time.perf_counter() - began)
    return 2 * rows**3 / float(np.median(seconds[3:]))
