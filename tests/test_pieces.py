"""What a run folder says beside its numbers: the kind of run, facts of its model, and the text of each token."""

import json
from dataclasses import replace

import pyarrow as pa
import pytest

from analysis.models.cache_cost import CacheCost
from analysis.models.language_model import LanguageModel
from analysis.runs.about import about_of
from analysis.runs.facts import ModelFacts
from analysis.runs.folder import Folder, save
from analysis.runs.reader import load
from analysis.runs.run import Run
from analysis.runs.spec import Sampling
from analysis.runs.tables import PIECES, SINKS, piece_row

from .test_record import SPEC, cuts, write

FACTS = ModelFacts(
    "tiny",
    64,
    96,
    2,
    3,
    1,
    "cpu",
    {"Family": "llama"},
    (CacheCost("MHA", 3, 288, 64, False), CacheCost("MQA", 1, 96, 64, True)),
)
WORDS = ["To", " be", ",", "\n", "\u2028\ufffd", "", " 漢字"]


def begun(path, spec=SPEC):
    run = Run(spec, first_token=7)
    run.model = FACTS
    return Folder(path, run, text_sha256="t", weights_sha256="w")


@pytest.mark.parametrize("ended", [False, True])
def test_facts_kind_and_texts_are_read_again(tmp_path, ended):
    folder = begun(tmp_path / "run")
    folder.pieces(-1, 0, WORDS)
    if ended:
        folder.finish("finished")
    run = load(tmp_path / "run")
    assert run.model == FACTS and run.kind == "reading" and run.pieces == [WORDS, WORDS]
    assert about_of(tmp_path / "run")["kind"] == "reading"
    save(run, tmp_path / "again", text_sha256="t", weights_sha256="w")
    again = load(tmp_path / "again")
    assert again.model == FACTS and again.pieces == run.pieces


def test_texts_of_a_conversation_come_lane_by_lane_and_the_later_win(tmp_path):
    folder = begun(tmp_path / "run", replace(SPEC, sampling=Sampling()))
    folder.pieces(0, 0, ["a", "b", "c"])
    folder.pieces(1, 0, ["x"])
    folder.pieces(0, 3, ["d", "e"])
    folder.pieces(0, 2, ["C", "D"])
    folder.finish("finished")
    run = load(tmp_path / "run")
    assert run.kind == about_of(tmp_path / "run")["kind"] == "chat"
    assert run.pieces == folder.run.pieces == [["a", "b", "C", "D", "e"], ["x"]]
    save(run, tmp_path / "again", text_sha256="t", weights_sha256="w")
    assert load(tmp_path / "again").pieces == run.pieces


def test_texts_cut_anywhere_are_read_up_to_there(tmp_path):
    folder = begun(tmp_path / "run")
    folder.pieces(0, 0, WORDS)
    folder.pieces(0, len(WORDS), WORDS)
    for run in cuts(tmp_path / "run", "pieces.arrow"):
        assert run.pieces in ([[], []], [WORDS, []], [WORDS + WORDS, []])


def test_a_folder_of_an_older_version_is_read_without_them(tmp_path):
    write(tmp_path / "run").finish("finished")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    del about["kind"], about["model"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(about))
    run = load(tmp_path / "run")
    assert run.model is None and run.kind == "reading" and run.pieces == [[], []]
    assert not (tmp_path / "run" / "pieces.arrow").exists()


@pytest.mark.parametrize(
    "row",
    [(2, 0, ["a"]), (-2, 0, ["a"]), (0, -1, ["a"]), (0, 2**62, ["a"]), (0, 0, None), (0, 0, [None]), (None, 0, ["a"])],
)
def test_texts_that_fit_no_run_are_one_sentence(tmp_path, row):
    begun(tmp_path / "run")
    with pa.ipc.new_stream(tmp_path / "run" / "pieces.arrow", PIECES) as stream:
        stream.write_batch(pa.record_batch([[value] for value in row], schema=PIECES))
    with pytest.raises(ValueError, match=r"pieces\.arrow [^\n]*damaged[^\n]*$"):
        load(tmp_path / "run")
    with pa.ipc.new_stream(tmp_path / "run" / "pieces.arrow", SINKS) as stream:
        stream.write_batch(pa.record_batch([[], [], [], []], schema=SINKS))
    with pytest.raises(ValueError, match="other columns"):
        load(tmp_path / "run")


@pytest.mark.parametrize("wrong", [{"model": 3}, {"model": {"name": "x"}}, {"model": {"layers": "many"}}, {"kind": 1}])
def test_facts_that_are_none_are_one_sentence(tmp_path, wrong):
    begun(tmp_path / "run")
    file = tmp_path / "run" / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | wrong))
    with pytest.raises(ValueError, match=r"^[^\n]*run\.json[^\n]*$"):
        load(tmp_path / "run")


def test_facts_are_those_of_the_model(tiny_llama):
    model = LanguageModel("tiny", tiny_llama, None, [])
    facts = ModelFacts.of(model)
    for name in ("name", "trained_length", "bytes_per_token", "layers", "heads", "kv_heads", "device", "card"):
        assert getattr(facts, name) == getattr(model, name)
    assert list(facts.sharings) == model.cache_costs
    for at in ((0, 0), (2, 3), (3, 0), (0, 4), (-1, 0), (0, -1)):
        assert facts.has(*at) == model.has(*at)


def test_a_row_of_texts_is_one_batch():
    assert piece_row(1, 5, ["a", "b"]).to_pylist() == [{"lane": 1, "start": 5, "pieces": ["a", "b"]}]
