"""Policies that rank slots: against transformers' plain forward pass, and the one-token loop."""

import numpy as np
import torch
from transformers import DynamicCache

from analysis import texts
from analysis.engine.stream import open_lanes
from analysis.policies import POLICIES, Ranked, parse

from .engine import LOOP, PLAIN, loop_token, plain_chunk
from .model import load, stock
from .report import compared, head
from .sizes import size

BUDGET, INTERVAL, ROUNDS = size((256, 16, 24), (160, 4, 3))


def main() -> None:
    model = load()
    tokens = texts.tokenize(texts.read("hamlet"), model.tokenizer, limit=6000)
    speed(model, tokens)
    print()


def names() -> list[str]:
    return [name for name, policy in POLICIES.items() if issubclass(policy, Ranked)]


def speed(model, tokens) -> None:
    head(f"ranked slots, budget {BUDGET}: speed, float32")
    network = stock("float32")
    network.set_attn_implementation("sdpa")
    ids = torch.as_tensor(tokens.astype(np.int64))[None]
    caches = [DynamicCache(config=network.config) for _ in range(2)]
    with torch.inference_mode():
        for c in caches:
            network(ids[:, :BUDGET], past_key_values=c, logits_to_keep=1)
    lanes = {}
    for name in names():
        for interval in (1, INTERVAL):
            lane = open_lanes(model, tokens, [parse(f"{name}:budget={BUDGET},interval={interval}")])[0]
            while lane.position <= BUDGET + 1:
                lane.read(BUDGET)
            # A chunk ends with a group where it can, so that the next one has whole passes.
            lane.read(BUDGET)
            lanes[name, interval] = lane
    times: dict = {key: [] for key in ("plain", "loop", *lanes)}
    for i in range(ROUNDS):
        times["plain"].append(plain_chunk(network, ids, caches[0], BUDGET + i * INTERVAL, INTERVAL) / INTERVAL)
        times["loop"].append(loop_token(network, ids, caches[1], BUDGET + i, 4))
        for key, lane in lanes.items():
            step = lane.read(lane.policy.pass_tokens)
            times[key].append(step.seconds / len(step.nll))
    median = {key: float(np.median(values[2:])) for key, values in times.items()}
    rate = {key: 1 / seconds for key, seconds in median.items()}
    for name in names():
        for interval, peer, theirs, asked in ((INTERVAL, PLAIN, "plain", 0.9), (1, LOOP, "loop", 1.2)):
            versus = {"theirs": rate[theirs], "ours": rate[name, interval], "unit": "tokens/s"}
            compared(f"{name} {BUDGET}, interval {interval}", peer, **versus, asked=asked)
