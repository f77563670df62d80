"""A link may name a part of a result that it does not have: that is said, and left out."""

import pytest

from app.jobs.registry import REGISTRY
from app.jobs.training import TrainingJob

from .test_opened_results import compared, opened, recalled
from .test_opened_results import home as home

pytestmark = pytest.mark.whole


@pytest.mark.parametrize("cell", ["5,128,95", "1,100,95", "1,128", "0.5,128,95"])
def test_a_cell_that_a_map_of_recall_does_not_have_is_told(home, cell):
    recalled(home / "re")
    at = opened("recall", run="re", cell=cell)
    (told,) = [said.value for said in at.error]
    assert "asks for something that cannot be" in told and f"'{cell}'" in told and "cell" not in at.query_params


def test_a_quality_that_a_comparison_does_not_measure_is_told(home):
    compared(home / "ve")
    at = opened("verdict", run="ve", quality="copy")
    (told,) = [said.value for said in at.error]
    assert "the comparison does not measure 'copy'" in told and "quality" not in at.query_params


def test_a_training_that_plays_is_found_again_by_its_address_and_no_other_begins(home):
    asked = {"chapter": "emergence", "kinds": "relu", "recipe": "layers=1,steps=60"}
    at = opened("learn", **asked)
    job = REGISTRY.get(at.query_params["run"])
    assert isinstance(job, TrainingJob) and at.session_state["lesson_run"] == job.id
    again = opened("learn", **asked, run=job.id)
    assert again.query_params["run"] == job.id and again.session_state["lesson_run"] == job.id and not job.freed
    job.join()
    REGISTRY.free(job.id)
    # It lies in the library when it is no longer in memory.
    kept = opened("learn", **asked, run=job.id)
    assert not kept.info and not kept.session_state["lesson_run"] and kept.query_params["run"] == job.id
    assert [entry.name for entry in home.iterdir() if not entry.name.startswith(".")] == [job.id]
