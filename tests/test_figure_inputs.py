"""What a figure is made of: a folder of another kind says what it is, and not what a figure misses in it."""

import json
from dataclasses import asdict

import pytest

from analysis.figures.inputs import open_input
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
