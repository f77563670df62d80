"""What a figure is made of: a folder of another kind says what it is, and not what a figure misses in it."""

import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from analysis.experiments import grid
from analysis.experiments.papers import EXPERIMENTS
from analysis.figures import parse
from analysis.figures.export import provenance
from analysis.figures.inputs import open_input
from analysis.figures.sheet import Layout
from analysis.lab.folder import command_of, read
from analysis.maps.capture import capture
from analysis.maps.stretch import Stretch
from analysis.models.loading import load
from analysis.runs.spec import Spec

SPEC = asdict(Spec("tiny-gpt-oss", "hamlet", ("dense",), 40))
RUNS = {
    "reading": {"spec": SPEC, "status": "finished"},
    "knock-outs": {"spec": SPEC, "status": "finished", "kind": "knockouts"},
    "measures": {"spec": SPEC, "status": "interrupted", "kind": "measures", "samples": 3},
    "recall": {"spec": SPEC, "status": "finished", "kind": "recall"},
    "verdict": {"spec": SPEC, "status": "interrupted", "kind": "verdict"},
    "training": {"recipe": {"attention": "softmax"}},
}


@pytest.mark.parametrize(
    ("lies", "needs", "made_of"),
    [
        ("verdict", "run", "a reading or a conversation"),
        ("recall", "run", "a reading or a conversation"),
        ("knock-outs", "run", "a reading or a conversation"),
        ("measures", "run", "a reading or a conversation"),
        ("training", "run", "a reading or a conversation"),
        ("reading", "recall", "recall"),
        ("reading", "verdict", "a verdict"),
        ("reading", "trainings", "trainings"),
        ("recall", "verdict", "a verdict"),
    ],
)
def test_a_folder_of_another_kind_says_what_it_is(tmp_path, lies, needs, made_of):
    (tmp_path / "run.json").write_text(json.dumps(RUNS[lies]))
    with pytest.raises(ValueError, match=rf"{tmp_path} is of another kind \({lies}\): this is made of {made_of}$"):
        open_input(tmp_path, needs)


def test_a_report_of_a_verdict_says_what_it_is_made_of(tmp_path, run):
    (tmp_path / "run.json").write_text(json.dumps(RUNS["verdict"]))
    code, _, said = run("report", "--run", str(tmp_path), "--out", str(tmp_path / "report.html"))
    assert (
        code == 2
        and said == f"error: {tmp_path} is of another kind (verdict): this is made of a reading or a conversation\n"
    )


@pytest.mark.parametrize("lies", ["recall", "verdict"])
def test_one_that_was_cut_off_before_it_had_numbers_is_no_other_kind(tmp_path, lies):
    (tmp_path / "run.json").write_text(json.dumps(RUNS[lies]))
    with pytest.raises(ValueError, match="cannot be read"):
        open_input(tmp_path, lies)


@pytest.mark.parametrize("switches", [(), ("40=window:window=16", "80=dense")])
def test_a_figure_of_a_stretch_says_the_command_that_captures_it(run, model, text, tmp_path, switches):
    asked = [
        "capture",
        f"--model={model}",
        f"--text={text}",
        "--device=cpu",
        "--tokens=100",
        "--policy=window:window=99",
    ]
    asked += [f"--switch={switch}" for switch in switches]
    places = [tmp_path / "one", tmp_path / "two"]
    assert run(*asked, "--out", str(places[0]))[0] == 0
    said = provenance(parse("sink-depth"), open_input(places[0], "stretch"), Path("a.pdf"), Layout())["run"]
    assert run(*shlex.split(said)[3:], "--out", str(places[1]))[0] == 0, said
    one, two = map(Stretch, places)
    assert (one.spec, one.segments, len(one.policies)) == (two.spec, two.segments, 1 + len(switches))
    np.testing.assert_array_equal(one.keys, two.keys)


@pytest.mark.parametrize("packed", [{"weights": "int8"}, {"kv_heads": 1}])
def test_no_command_captures_what_was_read_with_other_weights(model, text, tmp_path, packed):
    network = load(model, device="cpu")
    spec = Spec(model, text, ("dense",), 20, device="cpu")
    list(capture(network, np.arange(21, dtype=np.int32), replace(spec, **packed), tmp_path / "a"))
    assert Stretch(tmp_path / "a").command is None


def test_a_figure_of_a_grid_says_the_command_of_each_of_its_runs(run, model, text, tmp_path):
    base = Spec(model, text, ("dense",), 40, device="cpu")
    cells = EXPERIMENTS["sinks"].cells(base, 16)[:3]
    list(grid.run(cells, tmp_path / "grid"))
    said = provenance(parse("budget"), open_input(tmp_path / "grid", "grid"), Path("a.pdf"), Layout())["run"]
    commands = said.split("\n")
    assert len(commands) == 3, said
    for n, command in enumerate(commands):
        assert run(*shlex.split(command)[3:], "--out", str(tmp_path / "again" / str(n)))[0] == 0, command
    figures = [parse("budget").numbers(tmp_path / name) for name in ("grid", "again")]
    for name, column in figures[0].items():
        np.testing.assert_array_equal(figures[1][name], column)


def test_a_figure_of_trainings_says_the_command_that_trains_them(run, tmp_path):
    settings = "width=16,vocabulary=24,length=24,batch=8,steps=4,rate=0.001"
    places = [tmp_path / "one", tmp_path / "two"]
    assert run("emergence", settings, f"attention=relu,{settings}", "--every=2", "--out", str(places[0]))[0] == 0
    said = provenance(parse("emergence"), open_input(places[0], "trainings"), Path("a.pdf"), Layout())["run"]
    assert run(*shlex.split(said)[3:], "--out", str(places[1]))[0] == 0, said
    one, two = map(read, places)
    assert [t.about.recipe for t in one] == [t.about.recipe for t in two] and len(one) == 2
    for before, again in zip(one, two, strict=True):
        assert before.curves["step"].tolist() == [0, 2, 4]
        np.testing.assert_array_equal(before.maps, again.maps)
    mixed = [one[0], replace(one[1], about=replace(one[1].about, every=4))]
    assert command_of(mixed) is None
