"""A link may name a part of a result that it does not have: that is said, and left out."""

import json
import re
from dataclasses import asdict

import pytest

from analysis import files
from analysis.runs import trash
from analysis.runs.facts import ModelFacts
from app.controls import MOST_WHOLE
from app.jobs.base import PAUSE_AFTER, TextJob
from app.jobs.kept import Keeper
from app.jobs.registry import REGISTRY
from app.jobs.training import TrainingJob
from app.lesson import translated
from app.panels import job_panel

from .fuzz import seeds
from .test_opened_results import compared, knock_outs, opened, recalled
from .test_opened_results import home as home
from .test_presses import component_of, tell
from .waiting import until

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


@pytest.mark.parametrize("page", ["read", "chat"])
def test_a_head_that_the_model_of_a_recording_does_not_have_is_told(home, page):
    seeds.run(home / "it", end="finished", chat=page == "chat")
    about, facts = home / "it" / "run.json", ModelFacts("embedded", 2048, 10, 2, 3, 3, "cpu", {}, ())
    about.write_text(json.dumps(json.loads(about.read_text()) | {"model": asdict(facts)}))
    shown = opened(page, run="it", head="1.1")
    assert shown.query_params["head"] == "1.1" and not shown.session_state[f"{page}_problem"]
    at = opened(page, run="it", head="99.9")
    assert "has no layer 99, head 9" in at.session_state[f"{page}_problem"] and "head" not in at.query_params


@pytest.mark.parametrize("page", ["read", "chat"])
def test_a_moment_of_no_run_is_told(home, page):
    at = opened(page, at="50")
    assert "no run is named" in at.session_state[f"{page}_problem"] and "at" not in at.query_params


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


@pytest.mark.parametrize(
    ("language", "told"), [("en", "Step 99,999, which the link names"), ("zh", "99,999 步没有测量")]
)
def test_a_step_that_no_training_measured_is_said_until_another_is_chosen(home, language, told):
    seeds.trainings(home / "grown")
    at = opened("learn", chapter="emergence", run="grown", step="99999", lang=language)
    assert [told in info.value for info in at.info].count(True) == 1 and at.select_slider[0].value is None
    at.select_slider[0].set_value(1).run()
    assert not any(told in info.value for info in at.info) and at.query_params["step"] == "1"


class Elsewhere:
    """A page in another browser."""

    open = True


def test_a_training_that_another_page_steers_goes_on_where_it_is_watched(home, monkeypatch):
    begun = opened("learn", chapter="emergence", kinds="relu", recipe="layers=1,steps=100000")
    job = REGISTRY.get(begun.query_params["run"])
    until(job, lambda: (home / job.id / "1-relu" / "curves.csv").exists())
    job.take_over(Elsewhere())
    paces = []
    monkeypatch.setattr(job_panel, "redraw", lambda draw, pace: (draw(), paces.append(pace())))
    job.renewed -= PAUSE_AFTER
    asked = {"chapter": "emergence", "run": job.id}
    there = opened("learn", **asked)
    assert not there.session_state["lesson_run"] and there.query_params["run"] == job.id
    assert paces == [0.5] and not job.unwatched
    REGISTRY.free(job.id)
    opened("learn", **asked)
    assert paces == [0.5, None]


@pytest.mark.parametrize(
    ("language", "told"),
    [
        ("en", "Kept in memory only: this training needs 1 GB on disk, and /x has 0 MB."),
        ("zh", "只保留在内存中：需要 1 GB 的磁盘空间，而 /x 只有 0 MB。"),
    ],
)
def test_a_training_that_the_library_cannot_take_is_said_to_be_kept_in_memory_only(home, monkeypatch, language, told):
    def full(path, needed, what):
        raise ValueError(f"{what} needs 1 GB on disk, and /x has 0 MB: make room, ask for less, or name another folder")

    monkeypatch.setattr(files, "check_room", full)
    at = opened("learn", chapter="emergence", kinds="relu", recipe="layers=1,steps=20", lang=language)
    job = REGISTRY.get(at.query_params["run"])
    job.join()
    assert told in [caption.value.replace("\\", "") for caption in at.run().caption]
    REGISTRY.free(job.id)


@pytest.mark.parametrize(
    "why", [OSError(28, "No space left on device"), OSError(13, "Permission denied", "/x"), RuntimeError("odd")]
)
def test_why_something_is_not_kept_is_said_in_chinese_too(why):
    keeper = Keeper("a")
    for folder, begins in ((None, "只保留在内存中："), (object(), "此前写入的已存盘，其余只保留在内存中：")):
        keeper.folder = folder
        keeper.lose(why)
        said = translated(keeper.problem, "zh")
        assert said.startswith(begins) and not re.search("[a-z]{2}", said) and "。。" not in said


def unloaded(job):
    raise ValueError("its model is not here")


@pytest.mark.parametrize("page", ["read", "chat"])
def test_a_run_that_could_not_go_on_is_played_again_and_the_page_says_why(home, monkeypatch, page):
    monkeypatch.setattr(TextJob, "_load", unloaded)
    seeds.run(home / "it", end="interrupted", chat=page == "chat")
    at = opened(page, run="it")
    tell(at, {"press": {"what": "resume", "at": 1}}, component_of(at))
    if (job := REGISTRY.get("it")) is not None:
        job.join()
        at.run()
    assert at.session_state[f"{page}_recording"].id == "it" and REGISTRY.get("it") is None
    assert at.session_state[f"{page}_problem"] == "Its model is not here."


def test_a_run_that_was_deleted_when_it_was_to_go_on_is_opened_when_it_is_back(home):
    seeds.run(home / "it", end="interrupted")
    at = opened("read", run="it")
    when = trash.delete("it")
    tell(at, {"press": {"what": "resume", "at": 1}}, component_of(at))
    REGISTRY.get("it").join()
    at.run()
    trash.undo(when)
    again = opened("read", run="it")
    assert again.session_state["read_recording"].id == "it" and not again.session_state["read_problem"]


def test_a_figure_of_a_run_that_was_deleted_is_told_while_its_job_is_in_memory_still(home):
    seeds.run(home / "it", end="interrupted")
    at = opened("read", run="it")
    trash.delete("it")
    tell(at, {"press": {"what": "resume", "at": 1}}, component_of(at))
    REGISTRY.get("it").join()
    linked = opened("figures", run="it")
    assert REGISTRY.get("it") is not None and "is not here" in linked.error[0].value
    REGISTRY.free("it")


def test_a_result_that_could_not_go_on_is_shown_again_and_the_page_says_why(home, monkeypatch):
    monkeypatch.setattr(TextJob, "_load", unloaded)
    knock_outs(home / "ko")
    at = opened("heads", run="ko")
    found = [table.value.to_dict() for table in at.dataframe]
    next(button for button in at.button if button.label == "Resume").click()
    at.run()
    if (job := REGISTRY.get("ko")) is not None:
        job.join()
        at.run()
    assert [error.value for error in at.error] == ["Its model is not here."] and REGISTRY.get("ko") is None
    assert [table.value.to_dict() for table in at.dataframe] == found
    assert any(button.label == "Resume" for button in at.button)


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("max_new", 5000, 5000),
        ("top_k", 2000, 2000),
        ("seed", 2**40, 2**40),
        ("seed", 2**62, 2**53 - 1),
        ("temperature", 5.0, 5.0),
        ("top_p", 0.01, 0.01),
        ("repetition_penalty", 0.5, 0.5),
    ],
)
def test_a_conversation_of_a_command_opens_with_numbers_that_no_box_here_offers(home, name, value, shown):
    seeds.run(home / "it", end="finished", chat=True)
    about = home / "it" / "run.json"
    said = json.loads(about.read_text())
    said["spec"]["sampling"][name], said["spec"]["kv_chunk"] = value, 100_000
    about.write_text(json.dumps(said))
    at = opened("chat", run="it")
    assert not at.exception and not at.error
    chosen = at.session_state.chat
    assert (getattr(chosen.sampling, name), chosen.kv_chunk) == (shown, 100_000)


@pytest.mark.parametrize("kind", ["recall", "verdict"])
@pytest.mark.parametrize(
    ("name", "value", "shown"), [("seed", 2**40, 2**40), ("seed", 2**62, MOST_WHOLE), ("repeats", 500, 500)]
)
def test_a_result_of_a_command_opens_with_numbers_that_no_box_here_offers(home, kind, name, value, shown):
    {"recall": recalled, "verdict": compared}[kind](home / "it")
    said = json.loads((about := home / "it" / "run.json").read_text())
    said["settings"][name], said["spec"]["kv_heads"] = value, 5000
    if kind == "verdict":
        said["spec"]["tokens"] = 200_000
    about.write_text(json.dumps(said))
    at = opened(kind, run="it")
    assert not at.exception
    boxes = {box.label: box.value for box in at.number_input}
    assert boxes["KV heads"] == 5000 and boxes.get("Tokens of each", 200_000) == 200_000
    assert boxes[{"seed": "Seed", "repeats": "Texts for each"}[name]] == shown
