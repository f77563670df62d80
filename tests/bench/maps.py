"""Maps of long stretches: against whole attention matrices, and in a real browser."""

import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import torch

from analysis import texts
from analysis.maps.atlas import Atlas
from analysis.maps.capture import capture
from analysis.maps.region import Region
from analysis.maps.stretch import Stretch
from analysis.models.loading import load
from analysis.runs.spec import Spec
from app.frames.atlas import OVERVIEW

from .page import FLAGS, App
from .report import head, line, said
from .sizes import size

LENGTHS = size((1024, 4096, 16_384), (600,))
MOST = 22 * 2**30
"""Bytes that a process with whole matrices may take of a machine with 24 GiB."""


def main() -> None:
    with TemporaryDirectory() as folder:
        head("Maps of all heads, dense, embedded model, float32")
        model = load("embedded", device="cpu")
        ids = texts.tokenize(texts.read("hamlet"), model.tokenizer)
        for length in LENGTHS:
            ours(model, ids[: length + 1], Path(folder) / f"{length}")
            theirs(length)
        head(f"A stretch of {LENGTHS[-1]:,} tokens on the heads page")
        browser(Path(folder) / f"{LENGTHS[-1]}")


def ours(model, ids, place: Path) -> None:
    """Read once, and draw the whole map of every head in at most 512 cells on a side."""
    began = time.perf_counter()
    for _ in capture(model, ids, Spec("embedded", "hamlet", ("dense",)), place):
        pass
    captured = time.perf_counter() - began
    atlas = Atlas(Stretch(place), model)
    region = Region.square(0, atlas.stretch.tokens, OVERVIEW)
    began, drawn = time.perf_counter(), []
    for layer in range(atlas.stretch.layers):
        for h in range(atlas.stretch.heads):
            one = time.perf_counter()
            atlas.draw(layer, h, region)
            drawn.append(time.perf_counter() - one)
    total = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    disk = sum(p.stat().st_size for p in place.iterdir()) / 2**30
    said(
        f"{len(ids) - 1:,} tokens: capture / one map / all {len(drawn)}",
        f"{captured:.1f} s / {np.median(drawn):.3f} s / {total:.1f} s, {peak:.1f} GiB, and {disk:.1f} on disk",
    )


def theirs(length: int) -> None:
    """transformers' own pass with output_attentions=True, in a process that may not take the machine down."""
    if length > 4096:
        need = 270 * length**2 * 4 / 2**30
        said("  with output_attentions=True", f"not tried: its matrices alone are {need:,.0f} GiB")
        return
    code = f"from tests.bench.maps import whole_matrices; whole_matrices({length})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    told = done.stdout.strip() if done.returncode == 0 else f"ran out of {MOST / 2**30:.0f} GiB"
    said("  with output_attentions=True", told)


def whole_matrices(length: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST, MOST))
    model = load("embedded", device="cpu")
    ids = texts.tokenize(texts.read("hamlet"), model.tokenizer, limit=length)
    network = model.network
    network.set_attn_implementation("eager")
    began = time.perf_counter()
    with torch.inference_mode():
        text = torch.as_tensor(ids.astype(np.int64))[None]
        out = network(text, output_attentions=True, use_cache=False, logits_to_keep=1)
    assert len(out.attentions) == 30
    print(f"{time.perf_counter() - began:.1f} s, {psutil.Process().memory_info().rss / 2**30:.1f} GiB")


STEP = """
async (act) => {
  const canvas = document.querySelector(".sk-world"), box = canvas.getBoundingClientRect();
  const before = window.__sinkscope_atlas.tile, began = performance.now();
  const at = { clientX: box.left + 78 + act.x, clientY: box.top + 6 + act.y, bubbles: true, cancelable: true };
  if (act.key) canvas.dispatchEvent(new KeyboardEvent("keydown", { key: act.key, bubbles: true, cancelable: true }));
  else canvas.dispatchEvent(new WheelEvent("wheel", { ...at, deltaY: act.wheel }));
  while (window.__sinkscope_atlas.tile === before) {
    if (performance.now() - began > 5000) return null;
    await new Promise((done) => setTimeout(done, 4));
  }
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  return performance.now() - began;
}
"""


def browser(place: Path) -> None:
    from playwright.sync_api import sync_playwright

    with App() as app, sync_playwright() as p:
        chromium = p.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        # The app lets no page evaluate strings, by which Playwright waits.
        page = chromium.new_page(viewport={"width": 1440, "height": 900}, bypass_csp=True)
        page.set_default_timeout(120_000)
        page.goto(f"{app.address}/heads")
        box = page.get_by_role("textbox", name="Folder")
        box.fill(str(place))
        box.press("Enter")
        page.get_by_role("button", name="Open again").click()
        page.wait_for_function("window.__sinkscope_atlas?.tile >= 1")
        # The model is loaded by now: from here on it is the map alone, of another head each time.
        page.wait_for_timeout(1500)
        first = []
        for layer in (3, 9, 15, 21, 27):
            began, before = time.perf_counter(), page.evaluate("window.__sinkscope_atlas.tile")
            grid = page.locator(".sk-grid").bounding_box()
            page.mouse.click(grid["x"] + 34 + (grid["width"] - 78) * (layer + 0.5) / 30, grid["y"] + 40)
            page.wait_for_function("b => window.__sinkscope_atlas.tile > b", arg=before)
            first.append(time.perf_counter() - began)
            page.wait_for_timeout(700)
        line("First view of a head, the slowest of five", max(first), "≤ 2", unit="s", good=max(first) <= 2, digits=2)
        acts = [{"wheel": -240, "x": 300, "y": 300 + 10 * i} for i in range(6)]
        acts += [{"key": key, "x": 0, "y": 0} for key in ("ArrowUp", "ArrowLeft", "ArrowDown", "ArrowRight") * 4]
        acts += [{"wheel": 240, "x": 250, "y": 300} for _ in range(4)]
        acts += [{"key": key, "x": 0, "y": 0} for key in ("ArrowUp", "ArrowLeft", "ArrowDown", "ArrowRight") * 2]
        took = []
        # Zoomed in, so that there is something to pan over.
        for act in acts[: size(None, 8)]:
            if (one := page.evaluate(STEP, act)) is not None:
                took.append(one)
            page.wait_for_timeout(150)
        slow = float(np.percentile(took, 95))
        line(f"Pan or zoom step, p95 of {len(took)}", slow, "≤ 300", unit="ms", good=slow <= 300, digits=0)
        line("  median", float(np.median(took)), "", unit="ms", digits=0)
        memory = psutil.Process(app.process.pid).memory_info().rss / 2**30
        line("Memory of the app then", memory, "≤ 6", unit="GiB", good=memory <= 6, digits=1)
        chromium.close()
