"""Laws of what is tried once: the same numbers as tried, and tried again whenever anything else may come out."""

import numpy as np
import pytest
import torch

from analysis.engine import check
from analysis.engine.context import SharedContext
from analysis.engine.lane import Lane
from analysis.families.positions import Fixed
from analysis.models import checked, dtypes
from analysis.models.loading import load
from analysis.policies import Dense

from .families import shared
from .test_conversions import cache as cache
from .test_conversions import file as file
from .test_conversions import folder

pytestmark = pytest.mark.whole


@pytest.fixture
def tried(cache, monkeypatch):
    """What is tried while a model is loaded, from an empty cache on."""
    own, tried = check.own_logits, []
    monkeypatch.setattr(check, "own_logits", lambda *a: tried.append(a) or own(*a))
    return tried


def nll(model) -> np.ndarray:
    words = np.arange(40, dtype=np.int32)
    return Lane(0, Dense(), SharedContext(model.adapted, words, 4, 0)).read(39).nll


def again(file, tried, **how) -> bool:
    """Whether it is tried when it is loaded so."""
    tried.clear()
    load(str(file), device="cpu", **how)
    return bool(tried)


def test_a_conversion_is_tried_once_and_its_numbers_are_the_same(file, tried):
    first = nll(load(str(file), device="cpu"))
    assert tried
    tried.clear()
    second = nll(load(str(file), device="cpu"))
    assert not tried and np.array_equal(first, second)


def test_it_is_tried_once_for_each_way_to_load_it(file, tried):
    ways = [{}, {"dtype": "bfloat16"}, {"kv_heads": 1}, {"weights": "int8"}]
    assert [again(file, tried, **way) for way in ways] == [True] * 4
    assert [again(file, tried, **way) for way in ways] == [False] * 4


@pytest.mark.parametrize("what", ["code", "transformers", "processor", "instructions"])
def test_what_its_numbers_come_from_is_asked_for_each_time(file, tried, monkeypatch, what):
    assert again(file, tried) and not again(file, tried)
    match what:
        case "code":
            monkeypatch.setattr(checked, "_code", lambda: "other")
        case "transformers":
            monkeypatch.setattr(checked, "version", lambda name: "0")
        case "processor":
            monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "other")
        case "instructions":
            monkeypatch.setenv(dtypes.SWITCHES[0], "default")
    assert again(file, tried) and not again(file, tried)


@pytest.mark.parametrize("text", ["", "[", '{"a": 1}', "[1, 2]", "\x00"])
def test_a_damaged_note_costs_another_try(file, tried, cache, text):
    again(file, tried)
    (folder(cache) / checked.FILE).write_text(text)
    assert again(file, tried) and not again(file, tried)


def test_it_goes_with_its_conversion(file, tried, cache):
    assert again(file, tried)
    # What converts tries, too.
    count = len(tried)
    weights = folder(cache) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert again(file, tried) and len(tried) == count


def test_what_is_refused_is_refused_each_time(file, tried, monkeypatch):
    monkeypatch.setattr(check, "differs", lambda *a, **k: "the family 'llama' is not supported yet: so it is")
    for _ in range(2):
        with pytest.raises(ValueError, match="so it is"):
            load(str(file), device="cpu")


def test_positions_that_are_left_to_the_network_are_tried_each_time(tmp_path):
    """They are the second choice: who took a network for tried would move keys that cannot be moved."""
    for _ in range(2):
        adapted = checked.adapted_once(shared("hunyuan_v1_dense"), tmp_path, "model None")
        assert isinstance(adapted.positions, Fixed) and not (tmp_path / checked.FILE).exists()


def test_few_settings_are_remembered_and_the_last_of_them(file, tried, monkeypatch):
    for code in range(checked.MOST + 1):
        monkeypatch.setattr(checked, "_code", lambda code=code: f"{code}")
        assert again(file, tried)
    assert not again(file, tried)
    monkeypatch.setattr(checked, "_code", lambda: "0")
    assert again(file, tried)
