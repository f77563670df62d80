"""A link that names a run and asks for something else than that run has: the run is shown, and what is not followed is
said."""

import pytest
from streamlit.testing.v1 import AppTest

from app.jobs.registry import REGISTRY

from .fuzz import seeds
from .test_opened_results import asked_of, compared, knock_outs, measures, opened, recalled
from .test_opened_results import home as home
from .test_presses import tell
from .waiting import until

pytestmark = pytest.mark.whole

RUNS = {
    "read": (lambda place: seeds.run(place, end="finished"), {}),
    "chat": (lambda place: seeds.run(place, end="finished", chat=True), {}),
    "knockouts": (knock_outs, {"page": "heads"}),
    "measures": (measures, {"page": "heads"}),
    "recall": (recalled, {}),
    "verdict": (compared, {}),
}


def problem_of(at: AppTest, page: str) -> str:
    return at.session_state[f"{page}_problem"]


@pytest.mark.parametrize(
    ("kind", "asked", "names"),
    [
        ("read", {"text": "macbeth", "dtype": "float16"}, "text and dtype"),
        ("read", {"lane": "window:window=7", "fidelity": "on", "kv_heads": "3"}, "fidelity, kv_heads and lane"),
        ("read", {"lane": "nothing", "bos": "perhaps"}, "bos and lane"),
        ("chat", {"temperature": "1.5", "model": "nobody/nothing", "script": "x"}, "script, temperature and model"),
        ("knockouts", {"panel": "maps", "text": "hamlet", "kind": "values"}, "kind, panel and text"),
        ("measures", {"samples": "7", "first": "x", "policy": "window:window=7"}, "samples, first and policy"),
        ("recall", {"task": "needle", "lengths": "64", "seed": "8", "dtype": "x"}, "task, lengths, seed and dtype"),
        ("verdict", {"budgets": "64", "kl": "off", "tokens": "1"}, "budgets, kl and tokens"),
    ],
)
def test_what_a_link_asks_otherwise_than_its_run_has_it_is_told(home, kind, asked, names):
    make, of = RUNS[kind]
    make(home / "it")
    page = of.get("page", kind)
    usual = asked_of(opened(page, run="it"))
    at = opened(page, run="it", **asked)
    told = f"The run that this address names has its own {names}: what the address says of that is not followed."
    assert problem_of(at, page) == told
    # What is shown is the run, and so says the address.
    assert asked_of(at) | {"script": ""} == usual | {"script": ""}


@pytest.mark.parametrize("kind", RUNS)
def test_of_a_link_that_says_what_its_run_has_nothing_is_told(home, kind):
    make, of = RUNS[kind]
    make(home / "it")
    page = of.get("page", kind)
    at = opened(page, run="it")
    now = {name: at.query_params[name] for name in at.query_params}
    assert not problem_of(opened(page, **(now | {"dtype": "auto"})), page)
    assert not problem_of(opened(page, **now), page)


def test_what_is_set_for_the_next_result_is_not_said_of_the_one_on_screen(home):
    measures(home / "it")
    at = opened("heads", run="it")
    samples = next(box for box in at.sidebar.number_input if box.label == "Samples")
    samples.set_value(9).run()
    assert asked_of(at)["samples"] == "5"
    seeds.run(home / "chat", end="finished", chat=True)
    at = opened("chat", run="chat")
    usual, most = asked_of(at), next(box for box in at.sidebar.number_input if box.label == "Tokens an answer, at most")
    most.set_value(999).run()
    assert asked_of(at) == usual


def test_settings_that_a_lesson_has_beside_kept_trainings_come_back_with_a_reload(home):
    seeds.trainings(home / "grown")
    at = opened("learn", chapter="emergence", run="grown", kinds="sigmoid", recipe="steps=300")
    assert asked_of(at).items() >= {"run": "grown", "kinds": "sigmoid", "recipe": "steps=300"}.items()
    assert any("to train with these settings" in info.value for info in at.info)


@pytest.mark.parametrize(
    ("page", "press"),
    [("read", {"press": {"what": "start", "at": 1}}), ("chat", {"say": {"text": "Hello", "at": 1}})],
)
def test_a_head_that_the_model_does_not_have_is_told_once_that_is_loaded(home, tmp_path, page, press):
    seeds.model(tmp_path / "model")
    at = opened(page, head="99.9", lane="window:window=64", weights="model")
    (model,) = (box for box in at.sidebar.text_input if box.label == "Model")
    model.set_value(str(tmp_path / "model"))
    tell(at, press)
    job = REGISTRY.get(at.session_state[f"{page}_run"])
    until(job, lambda: job.status != "loading")
    at.run()
    assert "has no layer 99, head 9: click a cell of the sink mass grid." in job.note and "head" not in at.query_params
    REGISTRY.free(job.id)


@pytest.mark.parametrize(
    ("page", "asked"),
    [
        ("read", {"text": ["macbeth", "hamlet"]}),
        ("read", {"head": ["1.1", "2.2"]}),
        ("chat", {"seed": ["1", "2"]}),
        ("chat", {"shown": ["1", "0"]}),
        ("heads", {"policy": ["dense", "window"]}),
        ("recall", {"repeats": ["2", "3"]}),
        ("verdict", {"tokens": ["700", "800"]}),
        ("figures", {"dpi": ["100", "200"]}),
        ("learn", {"chapter": "row", "kind": ["relu", "sigmoid"]}),
    ],
)
def test_what_an_address_has_several_values_of_is_left_out_and_told(home, page, asked):
    ((name, values),) = [(name, values) for name, values in asked.items() if isinstance(values, list)]
    at = opened(page, **asked)
    told = f"The address of this page asks for something that cannot be: {name} has 2 values. That is left out."
    assert told in told_by(at, page) and at.query_params.get(name) not in values
    # The same twice is one value.
    again = opened(page, **(asked | {name: values[:1] * 2}))
    assert not any(f"{name} has" in said for said in told_by(again, page))


def told_by(at: AppTest, page: str) -> list[str]:
    said = [e.value.replace("\\", "") for kind in (at.error, at.info) for e in kind]
    return [*said, problem_of(at, page)] if page in ("read", "chat") else said


def test_a_cell_of_no_map_is_told_and_one_of_the_map_before_is_forgotten(home):
    told = "The address of this page asks for something that cannot be: {}. That is left out."
    at = opened("recall", cell="1,128,95")
    assert [e.value for e in at.error] == [told.format("cell is one of a map, and no run is named")]
    at = opened("recall", cell="x")
    must = "cell must be a lane, a length and a depth, written 1,512,50, not 'x'"
    assert [e.value for e in at.error] == [told.format(must)]
    recalled(home / "it")
    at = opened("recall", run="it", cell="1,128,95")
    assert asked_of(at)["cell"] == "1,128,95" and not at.error
    at.session_state["recall_cell"] = (1, 777, 95.0)
    at.run()
    assert "cell" not in at.query_params


@pytest.mark.parametrize(
    ("page", "asked", "told"),
    [
        ("read", {"story": "drop"}, "story is drop, whose lanes are others: press 'Drop the sinks' at the left"),
        ("read", {"lane": ["dense", "window"], "shown": "7"}, "shown must be a whole number from 0 to 1, not '7'"),
        (
            "heads",
            {"panel": "measures", "policy": "window:window=7"},
            "policy is 'window:window=7', and this panel reads under dense alone",
        ),
    ],
)
def test_what_a_page_can_make_nothing_of_is_told(home, page, asked, told):
    at = opened(page, **asked)
    assert f"The address of this page asks for something that cannot be: {told}. That is left out." in told_by(at, page)
    assert not {"story", "shown", "policy"} & set(asked_of(at))


@pytest.mark.parametrize(
    ("language", "told"),
    [
        ("en", "tokens, and the address of this page cuts it at 11, 23."),
        ("zh", "而本页网址要在第 11, 23 个词元前切开。"),
    ],
)
def test_cuts_beyond_the_end_of_a_sentence_are_told(home, language, told):
    at = opened("learn", chapter="chunks", cuts="2,11,23", lang=language)
    assert [e.value for e in at.error if told in e.value] and "cuts" not in at.query_params
