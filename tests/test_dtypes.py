"""What `auto` stands for follows from rates that are measured once, and is what a run records and a page says."""

import json

import numpy as np
import pytest
import torch
from streamlit.testing.v1 import AppTest

from analysis.experiments.presets import PRESETS
from analysis.models import dtypes
from analysis.models.dtypes import Rates, decide, faster, measured, remembered
from analysis.models.loading import load
from analysis.runs.reader import load as load_run
from analysis.runs.spec import Spec
from app.controls import Chosen

FAST, SLOW = Rates(100.0, 310.0), Rates(75.0, 15.0)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine whose rates are given and not timed: a list of them, of which each measurement takes the next."""
    rates, kinds = [], []
    monkeypatch.setenv("SINKSCOPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(dtypes, "measured", lambda kind: kinds.append(kind) or rates.pop(0))
    return rates, kinds, tmp_path / "cache"


@pytest.mark.parametrize(
    ("rates", "dtype", "why"),
    [
        (FAST, "bfloat16", "bfloat16: 3.1 times as fast here as float32"),
        (SLOW, "float32", "float32: bfloat16 takes 5.0 times as long here"),
        (Rates(100.0, 110.0), "float32", "float32: bfloat16 is hardly faster here, 1.1 times"),
        (Rates(100.0, 0.0), "float32", "float32: bfloat16 cannot be multiplied here"),
    ],
)
def test_bfloat16_is_taken_where_it_is_faster(rates, dtype, why):
    assert faster(rates) == (dtype, why)


def test_what_is_named_is_not_decided(machine):
    for dtype in ("float32", "bfloat16", "float16"):
        assert decide(dtype) == (dtype, "")
    assert machine[1] == []


def test_a_machine_is_measured_once(machine):
    rates, kinds, cache = machine
    rates.extend((SLOW, FAST))
    for _ in range(3):
        assert decide("auto", "cpu").dtype == "float32"
    assert kinds == ["cpu"] and [p.suffix for p in cache.iterdir()] == [".json"]


def test_another_torch_or_number_of_threads_is_measured_anew(machine, monkeypatch):
    rates, kinds, _ = machine
    rates.extend((SLOW, FAST, SLOW, FAST))
    assert remembered("cpu") == SLOW
    with monkeypatch.context() as other:
        other.setattr(torch, "get_num_threads", lambda: 777)
        assert remembered("cpu") == FAST
    with monkeypatch.context() as other:
        other.setattr(torch, "__version__", "0.0")
        assert remembered("cpu") == SLOW
    with monkeypatch.context() as other:
        other.setenv("ONEDNN_MAX_CPU_ISA", "AVX2_OTHER")
        assert remembered("cpu") == FAST
    assert remembered("cpu") == SLOW and len(kinds) == 4


@pytest.mark.parametrize(
    "damaged",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[1, 2]",
        lambda text: "\x00\xff",
        lambda text: json.dumps(json.loads(text) | {"float32": 0}),
        lambda text: json.dumps(json.loads(text) | {"bfloat16": None}),
        lambda text: json.dumps(json.loads(text) | {"bfloat16": float("nan")}),
        lambda text: json.dumps(json.loads(text) | {"about": ["another machine"]}),
    ],
)
def test_a_damaged_file_is_measured_again(machine, damaged):
    rates, kinds, cache = machine
    rates.extend((SLOW, FAST))
    remembered("cpu")
    (file,) = cache.iterdir()
    file.write_text(damaged(file.read_text()), encoding="latin-1")
    for _ in range(2):
        assert remembered("cpu") == FAST
    assert len(kinds) == 2 and list(cache.iterdir()) == [file]


def test_a_folder_that_takes_nothing_is_no_hindrance(machine):
    rates, kinds, cache = machine
    rates.extend((SLOW, SLOW))
    cache.write_text("a file where the folder should be")
    assert remembered("cpu") == remembered("cpu") == SLOW
    assert len(kinds) == 2


def test_both_are_timed(monkeypatch):
    monkeypatch.setattr(dtypes, "SHAPE", (8, 16, 32))
    monkeypatch.setattr(dtypes, "SECONDS", 0.0)
    assert all(0 < rate < float("inf") for rate in measured("cpu"))


@pytest.mark.parametrize(
    ("capabilities", "dtype"),
    [([(9, 0)], "bfloat16"), ([(8, 0), (8, 6)], "bfloat16"), ([(9, 0), (7, 5)], "float16"), ([(6, 1)], "float32")],
)
def test_a_gpu_is_asked_and_of_several_the_oldest(machine, monkeypatch, capabilities, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])
    monkeypatch.setattr(torch.version, "hip", None)
    decision = decide("auto", "cuda")
    assert decision.dtype == dtype and decision.why.startswith(f"{dtype}: this GPU") and machine[1] == []


@pytest.mark.parametrize(("rates", "dtype"), [(FAST, "bfloat16"), (SLOW, "float32")])
def test_a_run_records_what_auto_stood_for(machine, run, model, text, tmp_path, rates, dtype):
    machine[0].append(rates)
    common = ("--model", model, "--text", text, "--device", "cpu", "--tokens", "50", "--policy", "dense")
    code, said, _ = run("stream", *common, "--dtype", "auto", "--out", str(tmp_path / "auto"))
    assert code == 0 and f"dtype auto is {faster(rates).why}" in said
    assert load_run(tmp_path / "auto").spec.dtype == dtype
    code, said, _ = run("stream", *common, "--dtype", dtype, "--out", str(tmp_path / "named"))
    assert code == 0 and "auto" not in said.replace(str(tmp_path), "")
    auto, named = (load_run(tmp_path / name) for name in ("auto", "named"))
    assert auto.spec == named.spec
    np.testing.assert_array_equal(auto.tracks[0].nll.view(), named.tracks[0].nll.view())


@pytest.mark.parametrize(
    "command",
    [
        ("knockout", "--tokens", "20", "--layer", "0"),
        ("capture", "--tokens", "20", "--out", "OUT"),
        ("reproduce", "policies", "--tokens", "40", "--cache", "16", "--out", "OUT"),
    ],
)
def test_every_command_takes_auto(machine, run, model, text, tmp_path, command):
    machine[0].append(FAST)
    named = [str(tmp_path / "out") if part == "OUT" else part for part in command]
    code, said, error = run(*named, "--model", model, "--text", text, "--device", "cpu", "--dtype", "auto")
    assert code == 0, error
    assert faster(FAST).why in said


def test_so_does_a_conversation(machine, run, model):
    machine[0].append(FAST)
    code, said, error = run("chat", "--model", model, "--device", "cpu", "--dtype", "auto")
    assert faster(FAST).why in said
    assert code == 2 and "tokenizer" in error


def test_a_spec_says_what_is_computed_and_not_auto(machine, model):
    with pytest.raises(ValueError, match="not 'auto'"):
        Spec("embedded", "hamlet", ("dense",), dtype="auto")
    machine[0].append(FAST)
    assert load(model, dtype="auto", device="cpu").dtype == "bfloat16"


def page():
    import streamlit as st

    from app.controls import Chosen, model_controls

    st.session_state.setdefault("revision", 0)
    st.session_state.chosen = model_controls("test", st.session_state.get("chosen", Chosen(dtype="auto")))


def test_the_page_says_which_dtype_and_why(machine):
    machine[0].append(SLOW)
    shown = AppTest.from_function(page, default_timeout=60).run()
    assert not shown.exception
    assert faster(SLOW).why in [c.value for c in shown.caption]
    chosen = shown.session_state.chosen
    assert chosen == Chosen(dtype="auto") and chosen.decided() == Chosen(dtype="float32")
    shown.selectbox(key="test-0-dtype").set_value("bfloat16").run()
    assert not shown.caption and shown.session_state.chosen.decided().dtype == "bfloat16"


def test_the_story_that_needs_speed_leaves_the_dtype_to_the_machine(machine):
    assert PRESETS["past"].dtype == "auto"
    machine[0].append(FAST)
    chosen = Chosen(dtype=PRESETS["past"].dtype).decided()
    assert Spec(text="hamlet", policies=PRESETS["past"].policies, **chosen._asdict()).dtype == "bfloat16"
