"""The gallery: eight stories of real runs, which open without a model and which anybody can repeat."""

import gzip
import json
import shutil
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import typer

from analysis.cli import gallery, listings
from analysis.cli.ending import opened
from analysis.cli.gallery import CHAT, TITLES, TRAINING, spec_of
from analysis.cli.main import command
from analysis.engine.stream import open_lanes
from analysis.experiments.presets import CHATS, PRESETS
from analysis.lab import folder
from analysis.lab.recipe import Recipe
from analysis.lab.training import Training
from analysis.policies import parse
from analysis.runs.library import GALLERY, entry
from analysis.runs.reader import load
from analysis.runs.recording import recording
from analysis.runs.run import Run
from app import recordings

MOST = 12_000_000
"""Bytes of all stories together."""
READINGS = [name for name in TITLES if name in PRESETS]
FIRST = 200
"""Tokens that are read again."""


def header_of(run: Path) -> dict[str, Any]:
    """What the recording of a run says of it before its arrays."""
    data = gzip.decompress(recording(run))
    return json.loads(data[4 : 4 + struct.unpack("<I", data[:4])[0]])


def stories() -> list:
    """Folders of the gallery; one with a hidden name is being written."""
    return [path for path in GALLERY.iterdir() if path.is_dir() and not path.name.startswith(".")]


def test_eight_stories_ship_and_are_small():
    assert len(TITLES) == 8 and {path.name for path in stories()} == set(TITLES)
    assert sum(f.stat().st_size for path in stories() for f in path.rglob("*") if f.is_file()) <= MOST


@pytest.mark.parametrize("name", TITLES)
def test_a_story_says_what_it_is_and_names_no_machine(name, tmp_path):
    # A library keeps what it finds beside the run.
    shutil.copytree(GALLERY / name, tmp_path / name)
    found = entry(name, tmp_path)
    assert (found.title, found.status, found.problem) == (TITLES[name], "finished", "")
    for about in (GALLERY / name).rglob("run.json"):
        assert "process" not in json.loads(about.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", READINGS)
def test_a_reading_is_what_its_story_asks_to_the_end(name):
    run, story = load(GALLERY / name), PRESETS[name]
    assert run.spec == spec_of(story) and run.status == "finished"
    assert all(len(track.nll) == story.recorded - 1 for track in run.tracks)
    assert all(np.isfinite(track.nll.view()).all() for track in run.tracks)
    switched = [(e["position"], e["lane"], parse(e["policy"])) for e in run.events if e["what"] == "switch"]
    assert switched == [(s.position, s.lane, parse(s.policy)) for s in story.switches]
    for lane in {s.lane for s in story.switches}:
        wanted = [parse(s.policy) for s in story.switches if s.lane == lane]
        assert [parse(policy) for _, policy in run.tracks[lane].policies[1:]] == wanted


def test_the_story_of_long_texts_goes_past_what_the_model_was_trained_on():
    run = load(GALLERY / "past")
    assert run.model is not None and run.model.trained_length is not None
    assert all(len(track.nll) > run.model.trained_length for track in run.tracks)


def test_the_conversation_is_its_script_to_the_end():
    run, story = load(GALLERY / CHAT), CHATS[CHAT]
    assert run.kind == "chat" and run.spec.policies == tuple(str(parse(p)) for p in story.policies)
    assert (run.spec.text, run.spec.sampling.max_new) == (story.script, story.max_new)
    answers = [e["lane"] for e in run.events if e["what"] == "answer"]
    assert sorted(answers) == sorted(list(range(len(story.policies))) * 11)


def test_the_documents_say_what_the_conversation_says():
    said = " ".join((Path(__file__).parents[1] / "docs" / "pages.md").read_text(encoding="utf-8").split())
    without = "".join(load(GALLERY / CHAT).pieces[1])
    for words, times, told in (
        ("The opposite of hot is hot.", 6, "to the next six"),
        ("The NBA is a game of the NBA.", 2, "to the last two"),
    ):
        assert without.count(words) == times and f'says "{words}" {told}' in said


def test_a_sink_has_grown_under_softmax_and_not_under_relu():
    softmax, relu = folder.read(GALLERY / TRAINING)
    assert (softmax.recipe, relu.recipe) == (Recipe(), Recipe(attention="relu"))
    assert softmax.curves["step"][-1] == relu.curves["step"][-1] == Recipe().steps
    assert softmax.of_head("weight")[-1] > 0.5 > relu.of_head("weight")[-1]


def test_the_trainings_of_the_gallery_are_begun_anew(run, tmp_path, monkeypatch):
    def train(writers, place):
        for writer in writers:
            writer.finish("finished")

    monkeypatch.setattr("analysis.cli.lab._train", train)
    code, _, said = run("gallery", TRAINING, "--out", str(tmp_path))
    assert code == 0, said
    again = [folder.about_of(place).recipe for place in sorted(tmp_path.glob(f"{TRAINING}/*")) if place.is_dir()]
    assert again == [saved.recipe for saved in folder.read(GALLERY / TRAINING)]


@pytest.mark.parametrize("name", READINGS)
def test_a_reading_opens_without_its_model(name):
    run = load(GALLERY / name)
    assert header_of(GALLERY / name)["total"] == max(len(track.nll) for track in run.tracks) + 1
    assert all(len(pieces) > len(track.nll) for pieces, track in zip(run.pieces, run.tracks, strict=True))


def test_a_conversation_opens_without_its_model_and_its_turns_last_as_long_as_the_longest():
    run = load(GALLERY / CHAT)
    ends = [[0, *(e["stop"] for e in run.events if (e["what"], e["lane"]) == ("answer", lane))] for lane in (0, 1)]
    assert header_of(GALLERY / CHAT)["total"] == np.diff(ends).max(axis=0).sum()
    assert all(len(pieces) > len(track.nll) for pieces, track in zip(run.pieces, run.tracks, strict=True))


def test_a_story_is_found_by_a_name_that_no_run_of_the_library_can_have(tmp_path, monkeypatch):
    monkeypatch.setenv("SINKSCOPE_RUNS", str(tmp_path))
    found = recordings.find(f"{recordings.STORY}four", "reading")
    assert found is not None and found.story and found.spec == spec_of(PRESETS["four"])
    assert recordings.find("four", "reading") is None
    assert recordings.find(f"{recordings.STORY}../gallery/four", "reading") is None
    assert recordings.find(f"{recordings.STORY}nothing", "reading") is None


def read_again(model, run: Run, lane: int) -> np.ndarray:
    """The NLL of the first tokens of a recorded lane, as the engine has it now."""
    ids = np.concatenate(([run.first_token], run.tracks[lane].token_ids.view()[: FIRST - 1]))
    (again,) = open_lanes(model, ids, [parse(run.spec.policies[lane])])
    found = []
    while not again.done:
        found.append(again.read(run.spec.chunk).nll)
    return np.concatenate(found)


@pytest.mark.parametrize("name", [*READINGS, CHAT])
def test_a_story_has_the_numbers_of_a_real_run(embedded, name):
    run = load(GALLERY / name)
    for lane, track in enumerate(run.tracks):
        assert np.abs(read_again(embedded, run, lane) - track.nll.view()[: FIRST - 1]).max() < 1e-3


def test_the_training_has_the_numbers_of_a_real_one(embedded):
    for saved in folder.read(GALLERY / TRAINING):
        every = int(saved.curves["step"][1])
        for i, now in zip(range(2), Training(saved.recipe).measurements(every), strict=False):
            assert now.loss == pytest.approx(saved.curves["loss"][i], abs=1e-3)
            assert now.sink == pytest.approx(saved.of_head("weight")[i], abs=1e-3)


def test_a_story_that_there_is_not_is_refused_before_anything_is_read(run, tmp_path):
    code, _, error = run("gallery", "nothing", "--out", str(tmp_path / "gallery"))
    assert code == 2 and "the gallery has no story 'nothing': choose from" in error
    assert not (tmp_path / "gallery").exists()


def test_a_story_takes_the_place_of_a_story_alone(run, tmp_path, monkeypatch):
    def record(name, place):
        place.mkdir()
        (place / "run.json").write_text(name)

    monkeypatch.setattr(gallery, "record", record)
    theirs = tmp_path / "past" / "chapter.txt"
    theirs.parent.mkdir()
    theirs.write_text("mine")
    code, _, error = run("gallery", "drop", "past", "--out", str(tmp_path))
    assert code == 2 and f"{theirs.parent} is no story of a gallery, and would be replaced: choose" in error
    assert theirs.read_text() == "mine" and not (tmp_path / "drop").exists()
    for _ in range(2):
        assert run("gallery", "drop", "--out", str(tmp_path))[0] == 0
    assert sorted(p.name for p in (tmp_path / "drop").iterdir()) == ["label.json", "run.json"]


@pytest.mark.parametrize("ends", [KeyboardInterrupt(), typer.Exit(130)])
def test_an_interrupted_story_says_that_nothing_of_it_is_kept(run, tmp_path, monkeypatch, ends):
    def record(name, place):
        place.mkdir()
        raise ends

    monkeypatch.setattr(gallery, "record", record)
    code, said, _ = run("gallery", "drop", "--out", str(tmp_path))
    assert code == 130 and "Interrupted: nothing of " in said and said.endswith("python -m analysis gallery drop\n")
    assert not list(tmp_path.iterdir())


def test_a_gallery_that_cannot_be_written_is_refused_in_a_sentence(run, tmp_path):
    (tmp_path / "file").touch()
    code, _, error = run("gallery", "drop", "--out", str(tmp_path / "file"))
    assert code == 2 and "file cannot be written (File exists): name another place" in error


def test_the_concepts_say_what_the_first_story_has_recorded():
    """Its numbers can be seen by whoever plays it."""
    run = load(GALLERY / "four")
    nll = {policy: track.nll.view() for policy, track in zip(run.spec.policies, run.tracks, strict=True)}
    said = " ".join((Path(__file__).parents[1] / "docs" / "concepts.md").read_text(encoding="utf-8").split())
    without, sinks = (np.exp(nll[name].mean(dtype=np.float64)) for name in PRESETS["four"].policies[1::2])
    assert f"over the first {PRESETS['four'].recorded:,} tokens of *Hamlet*, in a cache of 128 tokens" in said
    assert f"the perplexity is {without:.1f} without them and {sinks:.1f} with them" in said
    rolling = np.exp(
        [nll["dense"][end - 256 : end].mean(dtype=np.float64) for end in range(256, len(nll["dense"]) + 1)]
    )
    assert f"the rolling perplexity of dense swings between {rolling.min():.0f} and {rolling.max():.0f}" in said


def test_an_interrupted_story_says_of_no_folder_that_it_goes_on(run, tmp_path, monkeypatch):
    """What made it writes into a draft, which is gone by then."""

    def record(name, place):
        with opened(lambda: cast(Any, SimpleNamespace(open=True, path=place, finish=lambda status: None))):
            raise KeyboardInterrupt

    monkeypatch.setattr(gallery, "record", record)
    code, said, _ = run("gallery", CHAT, "--out", str(tmp_path))
    assert code == 130 and said.startswith("Interrupted: nothing of ") and "resume " not in said
    monkeypatch.setattr(listings, "bundled", lambda: record(CHAT, tmp_path / "kept"))
    command.cache_clear()
    code, said, _ = run("texts")
    command.cache_clear()
    assert code == 130 and said.endswith(f"resume {tmp_path / 'kept'}\n")
