"""What lies in the library is seen again on the page that shows its kind: without its model, where it is tables."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from streamlit.testing.v1 import AppTest

from analysis.experiments.ablation import Effect, effects_as_csv, read_effects
from analysis.experiments.grid import put
from analysis.experiments.measures import MEASURES, Measured, read, write
from analysis.experiments.recall.asked import Asked
from analysis.experiments.recall.cells import Row, write_table
from analysis.experiments.recall.own import QUESTIONS
from analysis.experiments.verdict import Plan, tables
from analysis.experiments.verdict.kept import folder_of
from analysis.maps.capture import CutOff
from analysis.runs import library
from analysis.runs.facts import ModelFacts
from analysis.runs.result import ResultFolder
from analysis.runs.run import Run
from analysis.runs.spec import Spec
from analysis.runs.status import CAPTURING, here
from analysis.tables import as_csv
from app.jobs.costs import HEADER, WINDOWS, recorded
from app.jobs.registry import REGISTRY
from app.libraries import LIBRARIES
from app.panels.recall_settings import USUAL
from app.panels.run_list import OPENED_ON

from .fuzz import seeds
from .fuzz.addresses import MAIN
from .verdicts import VERDICT

pytestmark = pytest.mark.whole

EFFECTS = [Effect(1, head, 0.25 * head, float("nan") if head else 0.125) for head in range(3)]


@pytest.fixture
def home(tmp_path, monkeypatch):
    LIBRARIES.load()
    place = tmp_path / "library"
    monkeypatch.setenv("SINKSCOPE_RUNS", str(place))
    return place


def opened(page: str, **asked: str) -> AppTest:
    at = AppTest.from_file(MAIN, default_timeout=120)
    at.switch_page(f"views/{page}.py")
    for name, value in asked.items():
        at.query_params[name] = value
    at.run()
    assert not at.exception
    return at


def asked_of(at: AppTest) -> dict[str, str]:
    """What the address says now."""
    found = {name: at.query_params[name] for name in at.query_params}
    return {name: value if isinstance(value, str) else value[-1] for name, value in found.items()}


def said(at: AppTest) -> str:
    return "\n".join(e.value for kind in (at.markdown, at.error, at.info, at.warning, at.caption) for e in kind)


def result(place: Path, kind: str, policy: str, settings: dict) -> ResultFolder:
    """A folder as a job leaves it, but for its table."""
    run = Run(Spec("embedded", "macbeth", (policy,), 96, dtype="bfloat16"))
    run.model = ModelFacts("embedded", 2048, 10, 2, 3, 3, "cpu", {}, ())
    return ResultFolder(place, kind, run, text_sha256="ab" * 32, weights_sha256="", settings=settings)


def knock_outs(place: Path) -> None:
    folder = result(place, "knockouts", "streaming:sinks=4,window=60", {"kind": "weights", "layer": 1})
    (place / "effects.csv").write_text(effects_as_csv(EFFECTS))
    folder.finish("interrupted")


def made_up() -> Measured:
    random = np.random.default_rng(0).random
    heads = {name: random((5, 2, 3), np.float32) for name in MEASURES}
    sizes = random((5, 3, 2, 2), np.float32), random((5, 2, 3), np.float32), random((5, 2), np.float32)
    return Measured(heads, *sizes, np.zeros((5, 2, 2), np.int64))


def measures(place: Path) -> None:
    folder = result(place, "measures", "dense", {"samples": 5, "first": 2})
    write(made_up(), place / "measures.npz")
    folder.finish("finished")


def test_tables_are_read_as_they_were_written(tmp_path):
    (tmp_path / "effects.csv").write_text(effects_as_csv(EFFECTS))
    np.testing.assert_array_equal(np.array(read_effects(tmp_path / "effects.csv")), np.array(EFFECTS))
    measured = made_up()
    write(measured, tmp_path / "measures.npz")
    again = read(tmp_path / "measures.npz")
    assert list(again.heads) == list(MEASURES)
    for name, numbers in measured.heads.items():
        np.testing.assert_array_equal(again.heads[name], numbers)
    for name in ("norms", "largest", "median", "largest_at"):
        np.testing.assert_array_equal(getattr(again, name), getattr(measured, name))


def test_knock_outs_are_seen_again_without_their_model(home):
    knock_outs(home / "ko")
    at = opened("heads", run="ko")
    assert "Sinks + window 4 + 60 · up to 96 tokens of Macbeth" in said(at) and "The 3 that miss it most" in said(at)
    assert len(at.get("plotly_chart")) == 2 and "1.2: +0.5000" in at.get("plotly_chart")[1].proto.alt
    now = {"panel": "knockouts", "run": "ko", "text": "macbeth", "tokens": "96", "kind": "weights", "layer": "1"}
    assert asked_of(at) == now | {"policy": "streaming:sinks=4,window=60", "dtype": "bfloat16"}
    assert at.sidebar.radio[0].value == "weights"


def test_measures_are_seen_again_without_their_model(home):
    measures(home / "me")
    at = opened("heads", run="me", measure="entropy", threshold="0.55")
    assert "5 of 5 samples of 96 tokens of Macbeth" in said(at) and "Entropy of attention, nats" in said(at)
    _, rate = made_up().sink_rate(0.55)
    assert at.metric[0].value == f"{100 * rate:.1f} %" and len(at.get("plotly_chart")) == 3
    assert {"run": "me", "samples": "5", "first": "2", "measure": "entropy", "threshold": "0.55"}.items() <= asked_of(
        at
    ).items()


@pytest.mark.parametrize(
    ("file", "content", "wrong"),
    [
        ("effects.csv", "layer,head\n0,1\n", "has other columns than layer, head"),
        ("effects.csv", "layer,head,excess_nats_per_token,standard_error\n0,x,1,1\n", "a cell that is no number"),
        ("effects.csv", "layer,head,excess_nats_per_token,standard_error\n7,0,1,1\n", "heads that its model does not"),
        ("measures.npz", "x", "it is cut short, or damaged"),
    ],
)
def test_a_table_that_is_damaged_is_one_sentence_on_the_page(home, file, content, wrong):
    (knock_outs if file == "effects.csv" else measures)(home / "it")
    (home / "it" / file).write_text(content)
    at = opened("heads", run="it")
    assert len(at.error) == 1 and wrong in at.error[0].value.replace("\\", "")


def test_a_stretch_is_opened_by_its_link_or_by_one_press_where_its_model_would_be_fetched(home, tmp_path):
    seeds.model(tmp_path / "model")
    seeds.stretch(home / "st", tmp_path / "model")
    at = opened("heads", run="st", cells="logits", pool="mean", head="1.1")
    assert "kept in the library: press Open again to load its model" in said(at)
    assert at.sidebar.text_input("atlas-folder-1").value == str(home / "st")
    assert [b.label for b in at.button if b.label.startswith("Open")] == ["Open again"]
    now = asked_of(at)
    assert now["run"] == "st" and (now["cells"], now["pool"], now["head"]) == ("logits", "mean", "1.1")
    # No name of an address is fetched, and nobody's model is loaded before that press.
    assert not at.session_state["captures"]


@pytest.mark.parametrize(
    ("process", "wrong"), [({"pid": -1}, "was killed before its end: press Capture"), (here(), "is being written by")]
)
def test_of_a_capture_that_has_not_ended_is_said_why_and_what_it_was_asked(home, process, wrong):
    (home / "st").mkdir(parents=True)
    spec = Spec("embedded", "macbeth", ("window:window=64",), 96)
    about = {"status": "running", "process": {**here(), **process}, **asdict(CutOff(spec))}
    (home / "st" / CAPTURING).write_text(json.dumps(about))
    at = opened("heads", run="st")
    assert len(at.error) == 1 and wrong in at.error[0].value.replace("\\", "")
    now = {"run": "st", "text": "macbeth", "tokens": "96", "policy": "window:window=64"}
    assert now.items() <= asked_of(at).items() and "Capture" in [b.label for b in at.button]
    assert at.sidebar.text_input("atlas-folder-1").value == ""


def recalled(place: Path, status: str = "finished") -> None:
    """Of two texts a window gives back the one in which the number stands at the end; dense both."""
    asked = Asked("passkey", (64, 128), (95.0,), 1, 7)
    spec = Spec("embedded", "passkey", ("dense", "window:window=32"))
    folder, rows = asked.folder(spec, place), []
    for cell in asked.cells(spec)[: None if status == "finished" else 3]:
        at, policy = cell.place, cell.spec.policies[0]
        hit = policy == "dense" or at.length == 64
        rows.append(Row("passkey", policy, at.length, at.depth, 0, 7, hit, 0.5, "12345", "<b>", 9, None, 0.25))
        put(place / cell.name, {"run.json": cell.about(rows[-1:], SimpleNamespace(sha256="w")).encode()})
    write_table(rows, place)
    folder.finish(status)


def test_a_map_of_recall_is_seen_again_without_its_model(home):
    recalled(home / "re")
    at = opened("recall", run="re", measured="nll", cell="1,128,95")
    lanes = ["dense", "window:window=32"]
    now = {"run": "re", "lengths": "64,128", "depths": "95", "seed": "7", "measured": "nll", "cell": "1,128,95"}
    said_now = {name: at.query_params[name] for name in at.query_params}
    assert said_now.pop("lane") == lanes and {n: v if isinstance(v, str) else v[0] for n, v in said_now.items()} == now
    # The table of the cell that is looked at stands above that of the map.
    assert at.table[-1].value["Recalled"].tolist() == ["1/1"] * 3 + ["0/1"] and not at.error
    assert "--lengths=64,128" in at.code[0].value and buttons(at) == ["All answers as CSV"]
    (figure,) = (link.proto.query_string for link in at.get("page_link") if "figure" in link.proto.label)
    assert figure == "figure=needle-map&run=re"
    assert "Download needle-map.pdf" in buttons(opened("figures", figure="needle-map", run="re"))


def test_a_map_of_recall_that_stopped_offers_to_go_on_and_one_that_is_damaged_is_one_sentence(home):
    recalled(home / "re", "interrupted")
    at = opened("recall", run="re")
    assert "Resume" in [button.label for button in at.button] and len(at.table[0].value) == 3
    for cell in (home / "re").glob("*/run.json"):
        cell.write_text("{}")
    at = opened("recall", run="re")
    assert len(at.error) == 1 and "not that of a cell of recall" in at.error[0].value and not at.table


def test_after_a_file_of_ones_own_another_task_finds_the_usual_lengths(home):
    """And the address says nothing of lengths that such a file does not have."""
    (home / "own").mkdir(parents=True)
    (home / "own" / QUESTIONS).write_text(json.dumps({"context": "a", "question": "b", "answer": "a"}))
    asked = Asked(f"jsonl:file={home / 'own' / QUESTIONS}", (), (), 1, 0)
    asked.folder(Spec("embedded", "jsonl", ("dense",)), home / "own").finish("finished")
    at = opened("recall", run="own")
    assert not at.error and not {"lengths", "depths"} & set(at.query_params)
    at.selectbox[0].set_value("passkey").run()
    asked = at.session_state.recall
    assert (asked["task"], asked["lengths"], asked["depths"]) == ("passkey", USUAL["lengths"], USUAL["depths"])


def compared(place: Path, status: str = "finished") -> None:
    """A verdict whose numbers are round, as a job leaves it, but for its cells."""
    spec = Spec("embedded", "hamlet", ("dense",), 1000)
    asked = "perplexity", "kl", "passkey"
    plan = Plan(spec, ("window", "streaming"), (64, 128), asked, ("hamlet", "macbeth"), (256,), (2.5,), seed=7)
    folder = folder_of(plan, place)
    for name, written in tables.written(VERDICT).items():
        (place / name).write_text(written)
    folder.finish(status)


def test_a_verdict_is_seen_again_without_its_model(home):
    compared(home / "ve")
    at = opened("verdict", run="ve", quality="passkey", cost="megabytes")
    (told,) = [e.proto.body for e in at.main.get("html") if "sk-sentence" in e.proto.body]
    assert "The smallest cache within 2&nbsp;% of dense on Hamlet and Macbeth is Sinks + window at 128 tokens" in told
    now = {"run": "ve", "budgets": "64,128", "texts": "hamlet,macbeth", "tokens": "1000", "lengths": "256"}
    now |= {"depths": "2.5", "seed": "7", "quality": "passkey", "cost": "megabytes"}
    assert at.query_params["lane"] == ["window:window=256", "streaming:sinks=4,window=252,positions=cache"]
    assert asked_of(at) == now | {"lane": at.query_params["lane"][-1]} and not at.error
    assert at.table[0].value["Policy"].tolist()[::2] == ["Dense", "Window", "Sinks + window"]
    assert "Sinks + window at 4: 0.5" in at.get("bidi_component")[-1].proto.json
    assert buttons(at) == ["Table as CSV", "Pairs as CSV"] and "--budgets=64,128" in at.code[0].value
    (figure,) = (link.proto.query_string for link in at.get("page_link") if "figure" in link.proto.label)
    assert figure == "figure=pareto&run=ve"
    assert "Download pareto.pdf" in buttons(opened("figures", figure="pareto", run="ve"))


def test_a_verdict_that_stopped_offers_to_go_on_and_one_that_is_damaged_is_one_sentence(home):
    compared(home / "ve", "interrupted")
    at = opened("verdict", run="ve")
    assert "Resume" in [button.label for button in at.button] and len(at.table[0].value) == 5
    assert "cached tokens; Dense: 1; Window at 64: 20.09;" in at.get("bidi_component")[-1].proto.json
    (home / "ve" / "verdict.json").write_text("{}")
    at = opened("verdict", run="ve")
    assert len(at.error) == 1 and "not that of a comparison" in at.error[0].value and not at.table
    about = json.loads((home / "ve" / "run.json").read_text())
    (home / "ve" / "run.json").write_text(json.dumps(about | {"settings": {"budgets": [64]}}))
    at = opened("verdict", run="ve")
    assert len(at.error) == 1 and "does not say what is compared" in at.error[0].value and "run" not in asked_of(at)


def test_what_is_neither_in_memory_nor_in_the_library_is_said(home):
    at = opened("heads", run="gone", panel="measures", samples="7")
    assert "not in the library" in at.error[0].value and asked_of(at) == {"panel": "measures", "samples": "7"}


@pytest.mark.parametrize("page", ["heads", "recall", "verdict"])
def test_what_the_library_has_for_another_page_is_not_said_to_be_missing_alone(home, page):
    seeds.trainings(home / "grown")
    at = opened(page, run="grown")
    assert "or belongs to another page" in at.error[0].value and "run" not in asked_of(at)


def test_trainings_are_seen_again_with_what_they_were_trained_on(home):
    seeds.trainings(home / "grown")
    at = opened("learn", chapter="emergence", run="grown")
    assert asked_of(at) == {"chapter": "emergence", "run": "grown", "recipe": "steps=2"}
    # Their width is not chosen in the lesson, so that others would be trained.
    assert "to train with these settings" in said(at)
    assert at.select_slider[0].options == ["0", "1", "2", "the newest"]
    at.select_slider[0].set_value(1).run()
    assert not at.exception and asked_of(at)["step"] == "1"
    there = opened("learn", **asked_of(at))
    assert there.select_slider[0].value == 1 and not there.session_state["lesson_run"]


def costs(place: Path, policy: str = "dense", windows: str = WINDOWS) -> None:
    folder = result(place, "costs", "dense", {})
    numbers = [(128 * n, n / 10, n / 20, n * 1000) for n in range(1, 6)]
    rows = [[name, *map(str, of)] for name in (policy, windows) for of in numbers]
    (place / "costs.csv").write_text(as_csv(HEADER, rows))
    folder.finish("finished")


@pytest.mark.parametrize("windows", [WINDOWS, "a window, encoded afresh"])
def test_costs_are_seen_again_whatever_their_table_calls_windows(home, windows):
    costs(home / "co", windows=windows)
    found = recorded(home / "co")
    assert [(str(lane.policy), len(lane.costs)) for lane in found.lanes] == [("dense", 5)] and len(found.windows) == 5
    at = opened("learn", chapter="cost", run="co", show="memory")
    assert asked_of(at) == {"chapter": "cost", "run": "co", "show": "memory"}
    assert at.table[0].value.iloc[0, 1] == "640" and not at.error and not at.session_state["lesson_run"]


@pytest.mark.parametrize(
    ("spoil", "wrong"),
    [
        (lambda place: costs(place, "h2o"), "which this chapter does not compare"),
        (lambda place: costs(place, "window:window=512"), "which this chapter does not compare"),
        (lambda place: (costs(place), (place / "costs.csv").write_text("x")), "has other columns than policy"),
    ],
)
def test_costs_that_are_of_others_or_damaged_are_one_sentence(home, spoil, wrong):
    spoil(home / "co")
    at = opened("learn", chapter="cost", run="co")
    assert len(at.error) == 1 and wrong in at.error[0].value.replace("\\", "")


def test_a_result_that_is_not_there_is_said_and_the_chapter_begins(home):
    knock_outs(home / "ko")
    for name in ("gone", "ko", "../x"):
        at = opened("learn", chapter="emergence", run=name)
        begun = at.session_state["lesson_run"]
        assert "is not in the library, or of another chapter" in said(at) and asked_of(at)["run"] == begun
        REGISTRY.free(begun)


def test_a_folder_in_a_persons_home_is_found_as_it_is_written(home, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    seeds.model(tmp_path / "model")
    seeds.stretch(tmp_path / "st", tmp_path / "model")
    at = opened("heads")
    at.sidebar.text_input("atlas-folder-1").set_value("~/st").run()
    assert [b.label for b in at.button if b.label.startswith("Open")] == ["Open again"]
    seeds.run(tmp_path / "mine", end="finished")
    at = opened("figures", figure="perplexity", folder="elsewhere")
    at.text_input("figure-folder-run").set_value("~/mine").run()
    assert "Download perplexity.pdf" in buttons(at)


def test_figures_are_made_of_runs_that_an_address_names(home):
    seeds.run(home / "run", end="finished")
    seeds.trainings(home / "grown")
    at = opened("figures", run="grown")
    assert at.selectbox("figure-name").value == "emergence" and "Download emergence.pdf" in buttons(at)
    at = opened("figures", figure="strip:lane=1,begin=5,tokens=20", run="run", venue="acl", points="6.5", file="svg")
    assert "Download strip.svg" in buttons(at) and at.selectbox("figure-source-run").value.startswith("In the library")
    now = {"figure": "strip:lane=1,begin=5,tokens=20", "run": "run", "venue": "acl", "points": "6.5", "file": "svg"}
    assert asked_of(at) == now
    at.selectbox("figure-name").set_value("perplexity").run()
    at.number_input("figure-perplexity-roll").set_value(7).run()
    assert asked_of(at) == now | {"figure": "perplexity:mode=relative,reference=0,roll=7"}
    # What was set of a figure is there again when one comes back to it.
    at.selectbox("figure-name").set_value("strip").run()
    assert asked_of(at) == now


def buttons(at: AppTest) -> list[str]:
    return [button.proto.label for button in at.get("link_button")]


def test_a_figure_of_a_folder_or_a_stretch_whose_model_is_not_in_use_says_what_to_do(home, tmp_path):
    seeds.model(tmp_path / "model")
    seeds.stretch(home / "st", tmp_path / "model")
    at = opened("figures", figure="head-map", run="st")
    assert "is not in use here, and an address fetches none: open the stretch on the Heads page" in said(at)
    at = opened("figures", figure="perplexity", folder="elsewhere", dpi="x")
    assert "write its path under Folder" in said(at) and "dpi must be a whole number" in said(at)
    assert asked_of(at)["folder"] == "elsewhere"
    seeds.run(tmp_path / "mine", end="finished")
    at.text_input("figure-folder-run").set_value(str(tmp_path / "mine")).run()
    assert "Download perplexity.pdf" in buttons(at) and asked_of(at)["folder"] == "elsewhere"
    # A run that has grown, or another that lies there by now, is read again.
    shutil.rmtree(tmp_path / "mine")
    seeds.run(tmp_path / "mine", end="finished", model="another")
    assert "another" not in " ".join(code.value for code in at.code)
    assert "another" in " ".join(code.value for code in at.run().code)
    seeds.run(home / "own", end="finished")
    at.text_input("figure-folder-run").set_value(str(home / "own")).run()
    assert asked_of(at)["run"] == "own" and "folder" not in asked_of(at)


def test_every_kind_of_the_library_is_opened_where_it_is_seen(home):
    assert set(OPENED_ON) == set(library.KINDS)
    seeds.run(home / "run", end="finished")
    seeds.trainings(home / "grown")
    knock_outs(home / "ko")
    costs(home / "co")
    at = opened("runs")
    links = {link.proto.query_string for link in at.get("page_link") if link.proto.label == "Open"}
    assert links == {"run=run", "chapter=emergence&run=grown", "run=ko", "chapter=cost&run=co"}
