"""Laws of options: a value that no model and no run takes is refused by the option's name, before a model is loaded."""

import pytest

from analysis.cli import grids
from analysis.models import loading

MODEL = "no-such-model"
"""Named in every command here: whoever loads it before an option is refused says something else."""
WRONG = [
    ("stream", "--tokens=1", "--tokens must be at least 2, to predict one from another, not 1"),
    ("stream", "--kv-heads=0", "--kv-heads must be at least 1, not 0"),
    ("stream", "--maps=0.x", "--maps: a head is written layer.head, such as 1.3, and not '0.x'"),
    ("stream", "--maps=0.1,,", "--maps: a head is written layer.head, such as 1.3, and not ''"),
    ("chat", "--kv-heads=-1", "--kv-heads must be at least 1, not -1"),
    ("chat", "--script=nowhere.txt", "there is no script 'nowhere.txt'"),
    ("knockout", "--tokens=0", "--tokens must be at least 2, to predict one from another, not 0"),
    ("knockout", "--layer=-1", "--layer must be at least 0, not -1"),
    ("knockout", "--special=x", "--special must be one of text, tokens, not 'x'"),
    ("knockout", "--device=x", "--device must be auto, cpu, cuda or mps, not 'x'"),
    ("knockout", "--kind=x", "--kind must be one of values, weights, not 'x'"),
    ("capture", "--tokens=-5", "--tokens must be at least 2, to predict one from another, not -5"),
    ("capture", "--policy=h2o", "a stretch is captured under dense, window, shift or sinks + window"),
    ("recall passkey", "--lengths=1", "--lengths must be 2 to 1,048,576 tokens, not 1"),
    ("recall passkey", "--depths=101", "--depths must be from 0 to 100 % of the text, not 101"),
    ("recall passkey", "--repeats=0", "--repeats must be 1 to 10,000 texts for each length and depth, not 0"),
    ("recall passkey", "--question=x", "--question must be asked aware or blind, not 'x'"),
    ("recall passkey", "--kv-heads=0", "--kv-heads must be at least 1, not 0"),
    ("compare", "--question=x", "--question must be asked aware or blind, not 'x'"),
    ("compare", "--budgets=0", "--budgets must be 1 to 16,777,216 tokens, not 0"),
    ("compare", "--jobs=0", "--jobs must be at least 1 process, not 0"),
    (
        "compare",
        "--tasks=perplexty",
        "there is no task 'perplexty' (did you mean perplexity?); choose one of: perplexity",
    ),
    ("reproduce sinks", "--jobs=0", "--jobs must be at least 1 process, not 0"),
    ("reproduce sinks", "--backend=x", "there is no backend 'x'"),
    ("reproduce sinks", "--cache=8", "--cache must be another number of tokens than 8: streaming: window must"),
    ("emergence", "--every=0", "--every must be at least 1 step, not 0"),
    ("tiny --out=tiny", "--steps=0", "--steps must be at least 1, not 0"),
    ("figure perplexity --run=a --out=a.png", "--points=3", "--points must be 4 to 40, not 3"),
]


@pytest.mark.parametrize(("command", "option", "says"), WRONG)
def test_a_wrong_option_is_named_before_a_model_is_loaded(run, command, option, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [] if command.split()[0] in ("emergence", "tiny", "figure") else [f"--model={MODEL}"]
    monkeypatch.setattr(loading, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    monkeypatch.setattr(grids, "do", lambda *_, **__: pytest.fail("cells were begun"))
    code, _, said = run(*command.split(), *words, option)
    assert (code, said.count("\n")) == (2, 1) and says in said, said
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize("command", ["stream", "chat", "capture"])
def test_a_folder_that_holds_something_is_refused_before_a_model_is_loaded(run, command, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("kept")
    code, _, said = run(command, f"--model={MODEL}", f"--out={tmp_path / 'full'}")
    assert code == 2 and "holds something already (mine.txt): choose another folder for --out" in said
    code, _, said = run(command, f"--model={MODEL}", f"--out={tmp_path / 'full' / 'mine.txt'}")
    assert code == 2 and "mine.txt" in said and (tmp_path / "full" / "mine.txt").read_text() == "kept"
