"""Without what transformers imports for others no number changes, and whoever asks for that has it."""

import json
import subprocess
import sys

OF_OTHERS = {"torch._dynamo.eval_frame", "torch.distributed.tensor", "scipy.optimize"}
READ = """
import json, sys
from analysis.models.lean import import_transformers
if {first}:
    import_transformers()
from analysis.engine.stream import open_lanes
from analysis.models import load
from analysis.policies import parse

policies = [parse(policy) for policy in ("dense", "streaming:sinks=4,window=12", "h2o:budget=16,recent=8")]
lanes = open_lanes(load({folder!r}), list(range(3, 90)), policies)
nll = []
for lane in lanes:
    while not lane.done:
        nll += lane.read(8).nll.tolist()
print(json.dumps([nll, sorted(sys.modules)]))
"""
COMPILED = """
import sys
import torch
from analysis.models.lean import import_transformers

import_transformers()
assert "torch._dynamo.eval_frame" not in sys.modules

calls = []
def count(graph, _):
    calls.append(graph)
    return graph.forward

squares = torch.compile(lambda x: x * x + 1, backend=count)
assert squares(torch.tensor([2.0, 3.0])).tolist() == [5, 10] and len(calls) == 1
weight = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.AdamW([weight], lr=0.5, weight_decay=0)
weight.sum().backward()
optimizer.step()
assert abs(weight.detach() - 0.5).max() < 1e-6
"""
AFTER = """
import sys
import transformers.modeling_utils
from transformers.utils import is_scipy_available
from analysis.models.lean import import_transformers

before = sys.modules["torch._dynamo"]
import_transformers()
assert sys.modules["torch._dynamo"] is before and is_scipy_available()
"""


def run(script: str) -> str:
    """What a script prints in a process of its own, in which nothing was imported before."""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_numbers_are_the_same_bit_by_bit_and_nothing_of_others_is_imported(tiny_llama, tmp_path):
    tiny_llama.save_pretrained(tmp_path)
    (all_, had), (light, has) = (
        json.loads(run(READ.format(folder=str(tmp_path), first=first))) for first in (False, True)
    )
    assert len(light) == 3 * 86 and light == all_
    assert set(had) >= OF_OTHERS and not OF_OTHERS & set(has)


def test_the_compiler_is_there_for_whoever_compiles_or_trains():
    run(COMPILED)


def test_nothing_changes_where_transformers_is_there_already():
    run(AFTER)
