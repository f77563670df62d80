"""Shapes are types: all that computes with tensors runs once in a process in which they are checked at every call.

In a process of its own, since checking triples the time of the other tests.
"""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parents[1]
RUN = """
import typing
import beartype, numpy as np, torch
from jaxtyping import install_import_hook
from transformers import LlamaConfig, LlamaForCausalLM
rooms = "engine", "families", "policies", "maps", "experiments", "lab", "models.quantization", "chat.sampling"
install_import_hook([f"analysis.{room}" for room in rooms], "beartype.beartype")
# Policies import what their types need only for those who check them.
typing.TYPE_CHECKING = True
import analysis.policies
typing.TYPE_CHECKING = False
from analysis.engine.check import adapt
from analysis.engine.layers.slots import Slots
from analysis.engine.stream import open_lanes
from analysis.maps.recent import head_map, head_row
from analysis.policies import POLICIES, parse
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                     num_attention_heads=4, num_key_value_heads=2)).eval()
adapted = adapt(model)
tokens = np.random.default_rng(0).integers(0, 97, 160)
SIZES = {"window": 16, "budget": 16, "recent": 3, "stride": 4, "history": 9, "start": 5, "sinks": 2, "interval": 2}
def small(kind, **more):
    return kind(**{f.name: SIZES[f.name] for f in kind.settings() if f.name in SIZES}, **more)
THEN = "streaming:window=12", "h2o:budget=16,recent=5", "duo:window=8", "recompute:window=16", "dense"
for i, kind in enumerate(POLICIES.values()):
    more = {"softmax": "off-by-one", "knockout": "weights"} if i % 2 else {}
    (lane,) = open_lanes(adapted, tokens[:40], [small(kind, **more)], history=64)
    while not lane.done:
        lane.read(17)
    before = lane.snapshot()
    for token in tokens[40:44]:
        lane.next(lambda _, token=token: int(token), kv_chunk=5)
    assert head_map(lane, 1, 3) is not None and head_row(lane, 1, 3, lane.position - 2) is not None
    lane.restore(before)
    lane.switch(parse(THEN[i % len(THEN)]), pin=True)
    lane.context.extend(tokens[:9].astype(np.int32))
    lane.read(9)
    assert lane.view.first <= lane.position and (lane.shares is None or len(lane.shares))

import tempfile
from pathlib import Path
from analysis.chat.sampling import Chooser
from analysis.experiments.measures import joined, measure
from analysis.lab.recipe import ATTENTIONS, Recipe
from analysis.lab.training import Training
from analysis.maps.atlas import Atlas
from analysis.maps.attention_row import attend, merge, split
from analysis.maps.capture import capture
from analysis.maps.passage import Passage
from analysis.maps.region import Region
from analysis.maps.stretch import Stretch
from analysis.models import quantization
from analysis.models.language_model import LanguageModel
from analysis.runs.spec import Sampling, Spec
from tests.families import tiny
for name in "bloom", "falcon", "mpt", "gpt_oss", "gpt2", "gemma2":
    (lane,) = open_lanes(tiny(name), tokens[:40], [parse("dense" if name == "gpt2" else "streaming:window=12")])
    while not lane.done:
        lane.read(17)
loaded = LanguageModel("tiny", model, None, [])
# Asked whether it is a loaded model it would trace itself, with tensors in the place of numbers.
vars(loaded)["one_token"] = None
joined(list(measure(loaded, tokens.reshape(4, 40).astype(np.int32), separators=np.arange(97) < 9)))
for policy in "dense", "streaming:window=12":
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "stretch"
        list(capture(loaded, tokens.astype(np.int32), Spec("tiny", "words", (policy,)), place, chunk=32))
        atlas = Atlas(Stretch(place), loaded)
        for pool in "max", "mean":
            atlas.draw(1, 3, Region((0, 159), (0, 159), 4), pool=pool)
row = Passage(loaded, tokens[:20].astype(np.int32)).row(1, 3)
attend(row), merge(split(row, [4, 11]))
for kind in ATTENTIONS:
    training = Training(Recipe(kind, width=16, vocabulary=24, length=24, batch=4, steps=3))
    training.advance(1)
    training.measure()
for kind in quantization.Int8, quantization.Int4, quantization.Output:
    with torch.no_grad():
        packed = kind(torch.nn.Linear(64, 32))
        packed(torch.ones(2, 3, 64)), packed(torch.ones(2, 90, 64))
Chooser(Sampling(temperature=1.0, top_k=5, repetition_penalty=1.2))(torch.arange(9), torch.randn(97))
try:
    Slots(torch.zeros(2, 3))
except Exception as e:
    print("checked:", type(e).__name__)
"""


def test_shapes_are_what_their_types_say():
    done = subprocess.run([sys.executable, "-c", RUN], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("checked:")
