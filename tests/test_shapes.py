"""Shapes are types: one run of every policy in a process in which each of them is checked at every call.

In a process of its own, since checking triples the time of the other tests.
"""

import subprocess
import sys

RUN = """
import typing
import beartype, numpy as np, torch
from jaxtyping import install_import_hook
from transformers import LlamaConfig, LlamaForCausalLM
checked = "analysis.engine", "analysis.families", "analysis.policies", "analysis.maps.recent"
install_import_hook(checked, "beartype.beartype")
# Policies import what their types need only for those who check them.
typing.TYPE_CHECKING = True
import analysis.policies
typing.TYPE_CHECKING = False
from analysis.engine.layers.slots import Slots
from analysis.engine.stream import open_lanes
from analysis.maps.recent import head_map, head_row
from analysis.policies import POLICIES, parse
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                     num_attention_heads=4, num_key_value_heads=2)).eval()
tokens = np.random.default_rng(0).integers(0, 97, 160)
SIZES = {"window": 16, "budget": 16, "recent": 3, "stride": 4, "history": 9, "start": 5, "sinks": 2, "interval": 2}
def small(kind, **more):
    return kind(**{f.name: SIZES[f.name] for f in kind.settings() if f.name in SIZES}, **more)
THEN = "streaming:window=12", "h2o:budget=16,recent=5", "duo:window=8", "recompute:window=16", "dense"
for i, kind in enumerate(POLICIES.values()):
    more = {"softmax": "off-by-one", "knockout": "weights"} if i % 2 else {}
    (lane,) = open_lanes(model, tokens[:40], [small(kind, **more)], history=64)
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
try:
    Slots(torch.zeros(2, 3))
except Exception as e:
    print("checked:", type(e).__name__)
"""


def test_shapes_are_what_their_types_say():
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("checked:")
