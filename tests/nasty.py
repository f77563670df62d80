"""Texts and numbers that figures must stand: five scripts, long names, and what no file may hold."""

from itertools import pairwise

import numpy as np

POLICIES = (
    "dense",
    "window:window=64",
    "streaming:sinks=4,window=60,positions=text,knockout=values,heads=" + " ".join(f"{n}.{n}" for n in range(30)),
    "streaming:sinks=4,window=60,positions=cache,first=antony_and_cleopatra",
    "h2o:budget=64,recent=32,softmax=off-by-one",
    "recompute:window=64,stride=16",
    "window:window=64",
    "recompute:window=64,stride=16,first=macbeth",
)
TEXT = (
    "  two spaces, $$ and $x^2$ and \\frac{1}{2} <b>&amp;]]> -- %s {0}\n\n中文：天地玄黄，宇宙洪荒。日本語のかな漢字\n"
    " שלום עולם (abc) 12.5 ועוד [123]\nمرحبا بالعالم: لا إله 123 (x)\nहिन्दी में लिखा क्षत्रिय ज्ञान\n"
    "😀👍🏽 👨\u200d👩\u200d👧 e\u0301 \x0c\x1b[31mred\x1b[0m\u202eevil"
    "\u2028\ufeff\x85\x00\uffff\U0001ffff\nभारत abc שלום 中文 العربية end" + "W" * 120 + "\t|"
)


def cut(text: str, seed: int = 0) -> list[str]:
    """A text as tokens of one to five characters, through the middle of syllables and joined letters."""
    ends = np.cumsum(np.random.default_rng(seed).integers(1, 6, len(text)))
    ends = [0, *ends[ends < len(text)].tolist(), len(text)]
    return [text[a:b] for a, b in pairwise(ends)]


def numbers(name: str, seed: int = 0) -> dict[str, np.ndarray]:
    """What a figure of this name draws, with nasty names of lanes and a nasty text."""
    rng = np.random.default_rng(seed)
    lanes, layers = np.arange(len(POLICIES)), np.arange(30)
    tokens = np.geomspace(33, 1e6, 40).astype(int)
    lane, token = (grid.ravel() for grid in np.meshgrid(lanes, tokens, indexing="ij"))
    square = np.where(np.tri(24) > 0, rng.uniform(1e-4, 1, (24, 24)), np.nan)
    looks = cut(TEXT, seed)
    marks = [(n, 60 + n, "full") for n in lanes[1:]] + [(1, 5000 * n, POLICIES[n]) for n in range(2, len(POLICIES))]
    marked = [np.array(column) for column in zip(*marks, strict=True)]
    cell_lane, length, depth = (g.ravel() for g in np.meshgrid(lanes, [256, 4096, 65536], [5.0, 50, 95], indexing="ij"))
    lines = {"lane": lane, "policy": np.array(POLICIES)[lane], "token": token}
    known = {
        "head-map": {"map": square, "begin": np.array(60_000), "scale": np.array(128)},
        "emergence-map": {"map": square, "begin": np.array(0), "scale": np.array(1)},
        "map-grid": {"maps": np.array([[square] * 6] * 5), "layers": np.arange(5) * 9, "heads": np.arange(6) * 17},
        "mean-logits": {"maps": square[None].repeat(6, 0), "layers": np.arange(6)},
        "needle-map": {
            "policy": np.array(POLICIES)[cell_lane], "length": length, "depth": depth,
            "recalled": rng.integers(0, 3, len(depth)) / 2, "nll": rng.uniform(0, 20, len(depth)),
        },
        "recall-curve": {
            "policy": np.array(POLICIES)[lane], "distance": token, "recalled": (shares := rng.random(len(lane))),
            "low": shares / 2, "high": (1 + shares) / 2,
        },
        "pareto": {
            "policy": np.array(POLICIES), "title": np.array(POLICIES), "cost": 2.0**lanes, "value": 1.0 + lanes,
            "front": lanes < 3,
        },
        "sink-grid": {"mass": rng.random((48, 32))},
        "memory": {**lines, "megabytes": 10.0 ** rng.uniform(0, 5, len(lane))},
        "perplexity": {
            "lane": np.concatenate([lane, marked[0]]),
            "policy": np.array(POLICIES)[np.concatenate([lane, marked[0]])],
            "token": np.concatenate([token, marked[1]]),
            "perplexity": np.concatenate([10.0 ** rng.uniform(-0.3, 5, len(lane)), np.full(len(marks), np.nan)]),
            "mark": np.concatenate([np.full(len(lane), ""), marked[2]]),
        },
        "sink-depth": {
            "lane": np.repeat(lanes, 60), "policy": np.repeat(POLICIES, 60), "layer": np.tile(np.repeat(layers, 2), 8),
            "head": np.tile([0, 1], 240), "mass": rng.random(480),
        },
        "budget": {"policy": np.array(POLICIES), "cached": 2 ** (lanes + 4), "perplexity": rng.uniform(9, 1e4, 8)},
        "massive": {
            "layer": np.repeat(layers, 3), "rank": np.tile([1, 2, 3], 30), "size": 10.0 ** rng.uniform(0, 6, 90),
            "median": rng.uniform(1e-3, 1, 90),
        },
        "key-ranges": {
            "layer": np.repeat(layers[:6], 64), "channel": np.tile(np.arange(64), 6),
            "first_least": -(10.0 ** rng.uniform(0, 4, 384)), "first_greatest": 10.0 ** rng.uniform(0, 4, 384),
            "least": rng.uniform(-9, 0, 384), "greatest": rng.uniform(0, 9, 384),
        },
        "strip": {"text": np.array([t.replace("\0", "\\x00") for t in looks]), "nll": rng.uniform(0, 9, len(looks))},
        "attention-strip": {
            "text": np.array(looks),
            "attention": np.where(rng.random(len(looks)) < 0.2, np.nan, 10.0 ** rng.uniform(-5, 0, len(looks))),
        },
        "emergence": {
            "training": np.repeat(np.arange(6), 9), "step": np.tile(np.arange(9) * 100, 6),
            "attention": np.repeat(["softmax", "learned", "off-by-one", "relu", "sigmoid", "relu"], 9),
            "label": np.repeat(["Softmax", "Learned", "Off by one", "ReLU, rate 0.005", "Sigmoid", "ReLU, rate 1"], 9),
            "copied": rng.uniform(0, 5, 54),
        },
    }  # fmt: skip
    return known[name]


def misplaced(sheet) -> list[str]:
    """What is wrong with where a drawn figure has its words: off the page, or on top of one another."""
    from matplotlib.text import Text

    sheet.draw_without_rendering()
    page, found, wrong = sheet.bbox, [], []
    ticks = {}
    for ax in sheet.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                ticks[tick.label1] = low <= tick.get_loc() <= high and axis.get_visible() and ax.axison
                ticks[tick.label2] = False
    for text in sheet.findobj(Text):
        if not text.get_visible() or not text.get_text().strip() or not ticks.get(text, True):
            continue
        if text.axes is not None and not text.axes.axison and text not in text.axes.texts:
            continue
        box, name = text.get_window_extent(), text.get_text()
        if box.x0 < -0.5 or box.y0 < -0.5 or box.x1 > page.width + 0.5 or box.y1 > page.height + 0.5:
            wrong.append(f"{name!r} leaves the page: {box.extents.round(1)} of {page.extents}")
        for other, there in found:
            across = min(box.x1, there.x1) - max(box.x0, there.x0)
            down = min(box.y1, there.y1) - max(box.y0, there.y0)
            if across > 1 and down > 1:
                wrong.append(f"{name!r} covers {other!r} by {across:.1f} × {down:.1f}")
        found.append((name, box))
    return wrong
