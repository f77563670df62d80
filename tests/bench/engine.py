"""The engine against the one-token loop, against transformers' plain forward pass, and against the machine."""

import gc
import time

import numpy as np
import psutil
import torch
from transformers import DynamicCache, PreTrainedModel

from analysis import texts
from analysis.engine.lane import Lane
from analysis.engine.stream import open_lanes
from analysis.metrics import perplexity
from analysis.policies import Streaming
from tests.reading import read

from .machine import machine
from .model import load, stock
from .report import compared, head, line
from .sizes import TOY, size

ROUNDS = size(11, 2)
CHUNK = size(256, 16)
CHUNKS = size((256, 512, 1024, 2048), (16, 32))
CACHES = size((256, 1024), (64,))
SCORED = size(4_096, 128)
ALONG = size((1_000, 8_000, 32_000), (64, 128))
"""Positions in the text between which nothing may grow."""
PLAIN, LOOP = "transformers' plain pass", "one token at a time, evicting"
PRODUCTS = "float32 matrix products"
"""What the engine is compared with; the first evicts nothing and tells no sink mass."""
MAX_TOKENS = ALONG[-1] + (2 * ROUNDS + 1) * CHUNK
"""What the lane that stands last in the text reads up to."""


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, embedded model")
    tokens = None
    reference: dict[int, np.ndarray] = {}
    # Elsewhere bfloat16 is for nobody, and takes most of an hour.
    for dtype in ("float32", "bfloat16") if TOY or machine().bfloat16 else ("float32",):
        model = load(dtype=dtype)
        if tokens is None:
            tokens = texts.tokenize(texts.read("hamlet"), model.tokenizer, limit=MAX_TOKENS)
        for cache in CACHES:
            speed(model, tokens, cache, dtype, reference)
        if dtype == "float32":
            flat(model, tokens)
    print()


def plain_chunk(network: PreTrainedModel, ids: torch.Tensor, cache: DynamicCache, begin: int, chunk: int) -> float:
    """Seconds of transformers' own forward pass over a full cache, which is then as it was."""
    with torch.inference_mode():
        began = time.perf_counter()
        network(ids[:, begin : begin + chunk], past_key_values=cache)
        seconds = time.perf_counter() - began
        cache.crop(-chunk)
    return seconds


def loop_token(network: PreTrainedModel, ids: torch.Tensor, cache: DynamicCache, at: int, sinks: int) -> float:
    """Seconds to read one token, tell the NLL of the next, and evict: the way of the official evaluation."""
    with torch.inference_mode():
        began = time.perf_counter()
        logits = network(ids[:, at : at + 1], past_key_values=cache).logits[:, -1]
        torch.nn.functional.cross_entropy(logits.float(), ids[0, at + 1 : at + 2]).item()
        for layer in cache.layers:
            layer.keys = torch.cat((layer.keys[:, :, :sinks], layer.keys[:, :, sinks + 1 :]), 2)
            layer.values = torch.cat((layer.values[:, :, :sinks], layer.values[:, :, sinks + 1 :]), 2)
        return time.perf_counter() - began


def full_lane(model, tokens, cache: int, sink_tokens: int = 4) -> Lane:
    lane = open_lanes(model, tokens, [Streaming(4, cache - 4)], sink_tokens=sink_tokens)[0]
    while lane.position <= cache + CHUNK:
        lane.read(CHUNK)
    return lane


def speed(model, tokens, cache: int, dtype: str, reference: dict) -> None:
    what = f"{dtype}, 4 + {cache - 4}"
    head(f"{what} cached tokens")
    network = stock(dtype)
    network.set_attn_implementation("sdpa")
    ids = torch.as_tensor(tokens.astype(np.int64))[None]
    caches = [DynamicCache(config=network.config) for _ in range(2)]
    with torch.inference_mode():
        for c in caches:
            network(ids[:, :cache], past_key_values=c, logits_to_keep=1)
    lanes = {chunk: full_lane(model, tokens, cache) for chunk in CHUNKS}
    blind = full_lane(model, tokens, cache, sink_tokens=0)
    ours, plain = {c: f"engine {c}" for c in CHUNKS}, {c: f"plain {c}" for c in CHUNKS}
    times: dict[str, list[float]] = {n: [] for n in ("loop", "blind", "products", *ours.values(), *plain.values())}
    for i in range(ROUNDS):
        for chunk, lane in lanes.items():
            times[plain[chunk]].append(plain_chunk(network, ids, caches[0], cache + i * CHUNK, chunk) / chunk)
            times[ours[chunk]].append(lane.read(chunk).seconds / chunk)
        times["blind"].append(blind.read(CHUNK).seconds / CHUNK)
        for k in range(4):
            times["loop"].append(loop_token(network, ids, caches[1], cache + 4 * i + k, 4))
        times["products"].append(products())
    rate = {name: float(1 / np.median(values[1:])) for name, values in times.items()}
    best, theirs = (max(CHUNKS, key=lambda c, of=of: rate[of[c]]) for of in (ours, plain))
    many, share = (35, 1.15) if dtype == "float32" else (28, 1.10)
    for chunk in CHUNKS:
        line(f"engine, chunks of {chunk}, with sink mass", rate[ours[chunk]], "", unit="tokens/s", digits=0)
        paired = np.median(np.divide(times[plain[chunk]][1:], times[ours[chunk]][1:]))
        versus = {"theirs": rate[plain[chunk]], "ours": rate[ours[chunk]], "unit": "tokens/s", "ratio": paired}
        compared(f"{what}, both in chunks of {chunk}", PLAIN, **versus)
    versus = {"theirs": rate["loop"], "ours": rate[ours[best]], "unit": "tokens/s"}
    compared(f"{what}, chunks of {best}", LOOP, **versus, asked=many)
    paired = np.median(np.divide(times[plain[theirs]][1:], times[ours[best]][1:]))
    versus = {"theirs": rate[plain[theirs]], "ours": rate[ours[best]], "unit": "tokens/s", "ratio": paired}
    compared(f"{what}, chunks of {best} and {theirs}", PLAIN, **versus, asked=share)
    cost = np.median(np.array(times[ours[CHUNK]][1:]) / np.array(times["blind"][1:])) - 1
    line("cost of sink mass", 100 * cost, "≤ 5", unit="%", good=cost <= 0.05, digits=1)
    if dtype == "float32":
        peak, reached = rate["products"], work(model, cache, best) * rate[ours[best]]
        compared(f"{what}, all arithmetic", PRODUCTS, theirs=peak / 1e9, ours=reached / 1e9, unit="GFLOP/s", asked=0.8)
    nll = read(model, tokens[: SCORED + 1], Streaming(4, cache - 4), 512).nll.astype(np.float64)
    if dtype == "float32":
        reference[cache] = nll
    else:
        difference = nll - reference[cache]
        off = 100 * abs(perplexity(nll) / perplexity(reference[cache]) - 1)
        line(
            f"    perplexity of {SCORED:,} tokens away from float32", off, "≤ 0.1", unit="%", good=off <= 0.1, digits=2
        )
        line("    its standard error over tokens", 100 * difference.std() / np.sqrt(len(nll)), "", unit="%", digits=2)


def products(size: int = 1024) -> float:
    """Seconds for one floating-point operation of a large square product."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    began = time.perf_counter()
    for _ in range(8):
        a @ b
    return (time.perf_counter() - began) / (8 * 2 * size**3)


def work(model, cache: int, chunk: int) -> float:
    """Floating-point operations that a token needs: weights once, and the band of attention that it can see."""
    config = model.network.config
    layer = sum(p.numel() for p in model.network.model.layers[0].parameters() if p.ndim == 2)
    weights = model.layers * layer + config.vocab_size * config.hidden_size
    return 2 * weights + 4 * model.layers * model.heads * model.head_dim * (cache + 1)


def flat(model, tokens) -> None:
    """Lanes that stand at three places of the text take turns: a slow minute of the machine hits all of them."""
    head("float32, 4 + 252, along the text")
    process = psutil.Process()
    lanes = [open_lanes(model, tokens, [Streaming(4, 252)])[0] for _ in ALONG]
    first = most = 0
    for position, lane in zip(ALONG, lanes, strict=True):
        while lane.position < position:
            lane.read(CHUNK)
            if position == ALONG[-1] and lane.position > ALONG[0]:
                gc.collect()
                now = process.memory_info().rss
                first, most = first or now, max(most, now)
    seconds: list[list[float]] = [[] for _ in ALONG]
    for _ in range(2 * ROUNDS):
        for lane, taken in zip(lanes, seconds, strict=True):
            taken.append(lane.read(CHUNK).seconds / CHUNK)
    medians = [float(np.median(s[1:])) for s in seconds]
    for position, value in zip(ALONG, medians, strict=True):
        line(f"time per token at {position:,}", 1e3 * value, "", unit="ms")
    ratio = float(np.median(np.array(seconds[-1][1:]) / np.array(seconds[0][1:])))
    line(f"time per token at {ALONG[-1]:,} / at {ALONG[0]:,}", ratio, "≤ 1.05", good=ratio <= 1.05)
    grown = (most - first) / 1e6
    line("peak memory, growth between these", grown, "≤ 20", unit="MB", good=grown <= 20, digits=1)
