"""Apple's GPUs have no float64: nothing that a lane computes on its device asks for it."""

import pytest
import torch
from torch.overrides import TorchFunctionMode

from analysis.engine.stream import open_lanes
from analysis.maps.recent import head_map
from analysis.policies import POLICIES, parse, random

from .families import words
from .test_ranked import SMALL

SIZES = {"window": "window=12", "streaming": "window=12", "shift": "window=12", "recompute": "window=12,stride=3"}


class Without(TorchFunctionMode):
    """Refuses float64, but where the processor is named."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dtype == torch.float64 and "cpu" not in (kwargs or {}).values():
            raise TypeError(f"{func} gives float64, which this device does not have")
        return out


def test_numbers_have_the_digits_that_a_device_has():
    assert random.widest(torch.device("mps")) == torch.float32
    assert {random.widest(torch.device(name)) for name in ("cpu", "cuda", "meta")} == {torch.float64}


@pytest.mark.parametrize("name", POLICIES)
def test_a_lane_computes_without_float64(name, tiny_llama, monkeypatch):
    monkeypatch.setattr(random, "widest", lambda device: torch.float32)
    settings = SMALL.get(name) or SIZES.get(name, "")
    lane = open_lanes(tiny_llama, words(50), [parse(f"{name}:{settings}" if settings else name)], history=8)[0]
    with Without():
        while not lane.done:
            lane.read(9)
        lane.next(lambda logits: int(logits.argmax()))
        assert head_map(lane, 1, 0, 8) is not None
