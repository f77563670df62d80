"""Conversations: one token at a time against transformers' own loop, at any length, and in a real browser."""

import gc
import time
from functools import partial

import numpy as np
import psutil
import torch
from transformers import DynamicCache, PreTrainedModel

from analysis import texts
from analysis.chat.conversation import Conversation
from analysis.chat.partner import ASSISTANT, Partner
from analysis.chat.scripts import read_script
from analysis.engine.lane import Lane
from analysis.engine.stream import open_lanes
from analysis.policies import Dense, Policy, Streaming, Window
from analysis.runs.spec import Sampling
from tests.naive import OneByOne
from tests.reading import read

from .model import load, stock
from .report import compared, head, line
from .sizes import size

ROUNDS = size(60, 2)
LONG = size((1_000, 10_000, 100_000), (100, 200))
CACHED = size((4_096, 16_384, 32_768), (256,))
SCORED = size(4_096, 64)
MAX_NEW = size(48, 2)
SAID = size(2_000, 4)
RETURN = size(9, 1)
"""Prompts after which the sinks come back."""
PROMPTS = size(None, 2)
"""Of the bundled script: all, unless it says how many."""
QUESTION = "Please tell me in a few words what the capital city of the country called France is named today."
KINDS = {
    "float32": ("float32", "model"),
    "bfloat16": ("bfloat16", "model"),
    "int8": ("float32", "int8"),
    "int4": ("float32", "int4"),
}
MARKS = {"float32": 1.1, "int8": 2.3, "int4": 2.6}
WATCH = """() => {
  window.__first = {};
  let enter = 0, base = [];
  const answers = () => [...document.querySelectorAll(".sk-lane")].map(l => l.querySelectorAll(".sk-assistant").length);
  document.querySelector(".sk textarea").addEventListener("keydown", (e) => {
    if (e.key !== "Enter") return;
    enter = performance.now();
    window.__first = {};
    base = answers();
  });
  const look = () => {
    if (enter) answers().forEach((n, i) => {
      if (!(i in window.__first) && n > (base[i] || 0)) window.__first[i] = performance.now() - enter;
    });
    requestAnimationFrame(look);
  };
  look();
}"""
"""Notes when each lane's answer to what was entered is first seen."""


def main() -> None:
    tokens = texts.tokenize(texts.read("hamlet"), load().tokenizer, limit=max(SCORED, 400) + 1)
    speed(tokens)
    cost(tokens)
    pieces(tokens)
    long()
    script()
    breakdown()
    browser()


def loop(network: PreTrainedModel, ids: torch.Tensor):
    """transformers' own loop: one token after 256 cached ones, which are then as they were."""
    cache = DynamicCache(config=network.config)
    with torch.inference_mode():
        network(input_ids=ids[None, :256], past_key_values=cache, logits_to_keep=1)

    @torch.inference_mode()
    def step() -> int:
        logits = network(input_ids=ids[None, 256:257], past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        cache.crop(-1)
        return int(logits[0, -1].argmax())

    return step


def talking(model, tokens, policy: Policy, *, history: int = 0) -> Lane:
    """A lane that has read these tokens and answers from there."""
    lane = open_lanes(model, tokens, [policy], history=history)[0]
    lane.context.trace()
    while not lane.done:
        lane.read(512)
    return lane


def greedy(lane: Lane, kv_chunk: int | None = None) -> None:
    lane.next(lambda logits: int(logits.argmax()), kv_chunk=kv_chunk)


def alternate(steps: dict, rounds: int = ROUNDS) -> dict[str, np.ndarray]:
    """Seconds of each step, all of them in turns: a slow second hits all."""
    for step in steps.values():
        for _ in range(3):
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - began)
    return {name: np.array(t) for name, t in times.items()}


def speed(tokens) -> None:
    head("One token at a time, 4 + 252 cached, sink mass of every head included; transformers' loop has none")
    ids = torch.as_tensor(tokens[:300].astype(np.int64))
    steps = {"loop float32": loop(stock("float32"), ids), "loop bfloat16": loop(stock("bfloat16"), ids)}
    for name, (dtype, weights) in KINDS.items():
        model = load(dtype=dtype, weights=weights)
        steps[name] = partial(greedy, talking(model, tokens[:400], Streaming(4, 252)))
    held = load(weights="int4")
    steps["int4, held for maps"] = partial(greedy, talking(held, tokens[:400], Streaming(4, 252), history=1024))
    times = alternate(steps)
    base = np.median(times["loop float32"])
    for name, t in times.items():
        line(f"{name}", 1 / np.median(t), "", unit="tokens/s", digits=1)
        if name in MARKS:
            versus = {"theirs": 1 / base, "ours": 1 / np.median(t), "unit": "tokens/s"}
            compared(f"answering in {name}", "transformers' loop, float32", **versus, asked=MARKS[name])
    gc.collect()


def cost(tokens) -> None:
    head(f"What packed weights cost in perplexity, 4 + 252, {SCORED:,} tokens of Hamlet")
    nll = {}
    for weights in ("model", "int8", "int4"):
        model = load(weights=weights)
        nll[weights] = read(model, tokens[: SCORED + 1], Streaming(4, 252)).nll.astype(np.float64)
    for weights, mark in (("int8", None), ("int4", 0.5)):
        difference = nll[weights] - nll["model"]
        percent, error = 100 * np.expm1(difference.mean()), 100 * difference.std() / len(difference) ** 0.5
        good = None if mark is None else percent <= mark
        line(f"{weights}, ± {error:.2f}", percent, f"≤ {mark}" if mark else "", unit="%", good=good, digits=2)


def pieces(tokens) -> None:
    head("A dense lane's cache read in pieces (flash-decoding); cached keys are random numbers here, only time counts")
    model = load()
    lane = talking(model, tokens[:64], Dense())
    like = lane.store.layers[0].keys.view()
    for cached in CACHED:
        lane.context.extend(np.zeros(cached + 200 - len(lane.context.tokens), np.int32))
        lane.position = len(lane.context.tokens)
        for cache in lane.store.layers:
            cache.restart(torch.randn(2, like.shape[0], lane.position - 1, like.shape[2]))
        steps = {str(piece): partial(greedy, lane, piece) for piece in (None, 256, 512, 1024, 2048, 4096)}
        times = alternate(steps, size(15, 2))
        whole = np.median(times["None"])
        line(f"{cached:,} cached, whole", whole * 1e3, "", unit="ms/token", digits=1)
        for piece, t in times.items():
            if piece != "None":
                line(f"{cached:,} cached, in pieces of {piece}", whole / np.median(t), "", unit="× faster", digits=2)
    del lane
    gc.collect()


def long() -> None:
    head("The length of a conversation: 4 + 252, int4, plays read in between")
    model = load(weights="int4")
    every = "\n".join(texts.read(name).content for name in list(texts.plays())[:4])
    tokens = texts.tokenize(texts.Text("plays", "plays", every, None, ""), model.tokenizer, limit=LONG[-1])
    lanes = {f"{count:,}": talking(model, tokens[:count], Streaming(4, 252), history=1024) for count in LONG[:1]}
    memory = {}
    process = psutil.Process()
    for count in LONG[1:]:
        memory[count] = process.memory_info().rss
        lanes[f"{count:,}"] = talking(model, tokens[:count], Streaming(4, 252), history=1024)
    times = alternate({name: partial(greedy, lane) for name, lane in lanes.items()}, size(150, 2))
    base = np.median(times[f"{LONG[0]:,}"])
    for name, t in times.items():
        ratio = float(np.median(t / times[f"{LONG[0]:,}"]))
        line(f"ms a token at {name} tokens", 1e3 * np.median(t), "", digits=2)
        if np.median(t) != base:
            line(f"time a token, {name} / {LONG[0]:,}", ratio, "≤ 1.05", unit="×", good=ratio <= 1.05)
    before = process.memory_info().rss
    lane = lanes[f"{LONG[0]:,}"]
    for _ in range(SAID):
        greedy(lane)
    grown = (process.memory_info().rss - before) / 1e6
    line(f"memory, {SAID:,} tokens said after that", grown, "flat", unit="MB", good=grown < 10, digits=1)


def script() -> None:
    head("The bundled script, float32, greedy, against one token at a time with plain lists (takes minutes)")
    model = load()
    partner, (prompts, _) = Partner(model), read_script("questions")
    for policy, sinks, window in ((Streaming(4, 60), 4, 60), (Window(64), 0, 64), (Dense(), 0, None)):
        talk = Conversation(partner, policy, Sampling(max_new=MAX_NEW))
        talk.trace()
        for prompt in prompts[:PROMPTS]:
            talk.ask(prompt)
            while talk.step() is not None:
                pass
        naive, said = (
            OneByOne(model.network, sinks, window),
            set(np.flatnonzero(talk.roles.view() == ASSISTANT).tolist()),
        )
        wrong = 0
        for i, token in enumerate(talk.tokens[:-1]):
            logits = naive.logits(int(token))
            wrong += i + 1 in said and int(logits.argmax()) != talk.tokens[i + 1]
        line(f"{policy.label}: {len(said)} tokens said, of them others", wrong, "0", good=wrong == 0, digits=0)


def breakdown() -> None:
    head("A babbling model whose sinks are pinned again")
    partner, (prompts, _) = Partner(load()), read_script("questions")
    for pin in (True, False):
        talk = Conversation(partner, Window(64), Sampling(max_new=MAX_NEW))
        talk.trace()
        for i, prompt in enumerate(prompts[:PROMPTS]):
            if i == RETURN:
                talk.switch(Streaming(4, 60), pin=pin)
            talk.ask(prompt)
            while talk.step() is not None:
                pass
        for turn in talk.turns[RETURN - 2 :]:
            mark = f"pinned: {pin}" if turn in talk.turns[RETURN:] else "window"
            print(f"  {mark:<14} {turn.prompt} → {talk.said(turn)[:90]!r}")


def browser() -> None:
    from playwright.sync_api import sync_playwright

    from .page import App, browser_page

    head("The chat page in a browser, two lanes: from Enter to the first token of an answer on screen")
    with sync_playwright() as p, App() as app:
        page = browser_page(p)
        page.goto(f"{app.address}/chat")
        page.wait_for_selector(".sk textarea")
        page.wait_for_timeout(2_000)
        page.evaluate(WATCH)
        times: list[list[float]] = [[], []]
        for i in range(size(12, 3)):
            page.locator(".sk textarea").fill(QUESTION if i else "Hello")
            page.keyboard.press("Enter")
            page.wait_for_function("() => Object.keys(window.__first).length === 2")
            page.wait_for_function("() => window.__sinkscope.status === 'waiting'")
            page.wait_for_timeout(500)
            if i > 1:
                for lane, t in enumerate(page.evaluate("[window.__first[0], window.__first[1]]")):
                    times[lane].append(t)
        first, second = (float(np.median(t)) for t in times)
        line("first lane, median", first, "≤ 250", unit="ms", good=first <= 250, digits=0)
        line("both lanes, median", second, "", unit="ms", digits=0)
        page.context.browser.close()
