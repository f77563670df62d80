"""Laws of what a run is asked for: it is told whole, and what is not known of it is refused."""

import json

import pytest

from analysis.runs.reader import load
from analysis.runs.resume import stopped
from analysis.runs.spec import Spec

from .fuzz import seeds
from .test_record import SPEC


def test_spec_survives_json_and_can_be_a_key():
    again = Spec.from_json(SPEC.to_json())
    assert {SPEC: 1}[again] == 1


@pytest.mark.parametrize(
    "wrong",
    [{"policies": ()}, {"policies": ("none",)}, {"tokens": 1}, {"chunk": 0}, {"dtype": "int8"}, {"device": "tpu"}],
)
def test_spec_out_of_range_is_one_sentence(wrong):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        Spec(**{"model": "embedded", "text": "hamlet", "policies": ("dense",), **wrong})


@pytest.mark.parametrize("text", ["", "[]", '{"modle": 1}', "3"])
def test_what_is_no_spec_is_said_so(text):
    with pytest.raises(ValueError, match="not the Spec"):
        Spec.from_json(text)


@pytest.mark.parametrize("within", ["spec", "sampling"])
def test_run_of_a_version_with_other_settings_is_not_taken_for_one_without(tmp_path, within):
    seeds.run(tmp_path / "a", end="interrupted", chat=True)
    about = json.loads((file := tmp_path / "a" / "run.json").read_text())
    (about["spec"] if within == "spec" else about["spec"]["sampling"])["novel"] = 2
    file.write_text(json.dumps(about))
    for reads in (load, stopped):
        with pytest.raises(ValueError, match="asks for 'novel', which nobody here knows"):
            reads(tmp_path / "a")
    assert json.loads(file.read_text()) == about
