"""Shapes are types: one run of every policy in a process in which each of them is checked at every call.

In a process of its own, since checking triples the time of the other tests.
"""

import subprocess
import sys

RUN = """
from jaxtyping import install_import_hook
checked = ["engine.attention", "engine.layers.banded", "engine.layers.slots", "families.rotary"]
install_import_hook([f"analysis.{name}" for name in checked], "beartype.beartype")
import numpy as np, torch
from transformers import LlamaConfig, LlamaForCausalLM
from analysis.engine.layers.slots import Slots
from analysis.maps.recent import head_map
from analysis.policies import parse
from analysis.engine.stream import open_lanes
torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                     num_attention_heads=4, num_key_value_heads=2)).eval()
tokens = np.random.default_rng(0).integers(0, 97, 160)
policies = ["dense", "window:window=16", "streaming:sinks=4,window=12", "recompute:window=16,stride=4"]
for lane in open_lanes(model, tokens, [parse(p) for p in policies], history=64):
    while lane.position < 100:
        lane.read(17)
    lane.switch(parse("streaming:sinks=4,window=12"), pin=True)
    lane.read(30)
    assert head_map(lane, 1, 3) is not None
try:
    Slots(torch.zeros(2, 3))
except Exception as e:
    print("checked:", type(e).__name__)
"""


def test_shapes_are_what_their_types_say():
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("checked:")
