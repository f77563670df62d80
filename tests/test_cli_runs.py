"""Laws of the commands for the library of runs: what they list, say and do."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from analysis.cli.console import out
from analysis.cli.ending import say_how_to_go_on
from analysis.runs import library
from analysis.runs.folder import save
from analysis.runs.reader import load

from .fuzz import seeds
from .recordings import made_up
from .test_library import names
from .test_record import rewrite_nll


def test_commands_do_what_they_say(home, run, tmp_path):
    assert run("runs")[1].startswith(f"There is no run in {home} yet")
    seeds.run(home / "a", end="finished")
    for words in (("runs",), ("runs", "list"), ("runs", "list", "HAMLET", "dense"), ("runs", "show", "a")):
        code, said, _ = run(*words)
        assert code == 0 and "hamlet" in said and "Reading" in said and "Dense" in said and "Window" in said
    assert "No run" in run("runs", "list", "macbeth")[1]
    assert "a is called Drop [b]x" in run("runs", "rename", "a", "Drop [b]x")[1]
    run("runs", "pin", "a")
    assert "* Drop [b]x" in (said := run("runs")[1]) and "hamlet" in said
    run("runs", "unpin", "a")
    assert "* Drop" not in run("runs")[1]
    file = tmp_path / "a.zip"
    assert run("runs", "export", "a", "--out", str(file))[0] == 0
    assert run("runs", "export", "a", "--out", str(file))[0] == 2
    assert "is a-2 now" in run("runs", "import", str(file))[1]
    run("runs", "delete", "a", "a-2")
    assert names() == []
    assert "a-2 is back" in run("runs", "undo")[1] and "a is back" in run("runs", "undo", "a")[1]
    assert sorted(names()) == ["a", "a-2"]
    elsewhere = str(tmp_path / "elsewhere")
    assert run("runs", "import", str(file), "--runs", elsewhere)[0] == 0
    assert "a" in run("runs", "list", "--runs", elsewhere)[1] and len(names()) == 2
    (damaged := tmp_path / "damaged.zip").write_bytes(file.read_bytes()[:100])
    code, said, why = run("runs", "import", str(file), str(damaged), "--runs", elsewhere)
    assert code == 2 and f"{file} is a-2 now" in said and f"error: {damaged}: this .zip file is not taken in" in why


def test_every_lane_stands_beside_the_tokens_that_its_perplexity_is_of(home, run):
    save(made_up(3000, ends={1: 1000, 2: 40}), home / "a", text_sha256="", weights_sha256="")
    said = [
        line for line in run("runs")[1].splitlines() if re.search(r"│ +[0-9,]+ │ (Dense|Window|Recompute|Sinks)", line)
    ]
    assert [re.search(r"│ +([0-9,]+) │", line)[1] for line in said] == ["3,000", "1,000", "40", "3,000"]


@pytest.mark.parametrize("words", ["list", "show"])
def test_what_is_known_of_a_run_is_whole_on_a_narrow_terminal(home, run, monkeypatch, words):
    """A long name is broken into lines, and of a list the lanes are cut."""
    name, model = "20261129-222445-aa843cfc", "a-model-" * 12 + "end"
    seeds.run(home / name, end="interrupted", model=model)
    monkeypatch.setattr(out, "width", 80)
    said = run("runs", words, *[name] * (words == "show"))[1]
    assert max(map(len, said.splitlines())) <= 80
    assert name in said and "interrupted" in said and re.search(r"\b\d{4}-\d\d-\d\d\b", said)
    # The column in which the model stands.
    begin = next(line for line in said.splitlines() if "a-model" in line).index("a-model")
    assert model in "".join(
        line[begin : begin + (13 if words == "list" else 69)].strip(" │") for line in said.splitlines()
    )


@pytest.mark.parametrize("named", ["name", "title"])
def test_a_long_name_takes_no_column_from_a_list(home, run, monkeypatch, named):
    long = "the-second-act-of-hamlet-under-window-and-sinks-and-once-more-dense"
    seeds.run(home / (long if named == "name" else "a"), end="finished")
    if named == "title":
        library.rename("a", long.replace("-", " "))
    for width in (80, 100, 140):
        monkeypatch.setattr(out, "width", width)
        said = run("runs", "list")[1]
        assert library.entries()[0].name in said
        cells = [cell.strip() for cell in re.split(r"\s{2,}|[│┃]\s*", said)]
        whole = ("Tokens", "40", "Dense", "MB", "0.0")
        assert all(any(cell.startswith(word) for cell in cells) for word in whole)
        words = ("Perplexity", "finished,", *library.entries()[0].title.split())
        assert all(word in " ".join(said.split()) for word in words)


def test_the_command_that_brings_a_run_back_takes_its_name_whole(home, run):
    seeds.run(home / "my run", end="finished")
    said = run("runs", "delete", "my run")[1]
    words = shlex.split(said.partition(": ")[2].partition(" brings")[0])
    assert "my run is back" in run(*words[words.index("runs") :])[1]


@pytest.mark.parametrize(
    "words", ["show x", "rename x y", "pin ../x", "delete /etc", "undo", "undo x", "export x", "import x"]
)
def test_commands_say_in_one_line_what_cannot_be(home, run, words):
    code, _, said = run("runs", *words.split())
    assert code == 2 and said.startswith("error: ") and said.count("\n") == 1


def test_stream_puts_its_run_into_the_library(home, run, model, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("stream", "--model", model, "--text", text, "--tokens", "40", "--policy", "dense", "--device", "cpu")
    assert run(*words)[0] == 0 and run(*words)[0] == 0
    assert [e.status for e in library.entries()] == ["finished"] * 2
    assert run(*words, "--runs", str(tmp_path / "other"))[0] == 0
    assert len(library.entries()) == 2 and len(library.entries(tmp_path / "other")) == 1
    monkeypatch.setenv("SINKSCOPE_RUNS_GB", "1e-9")
    code, said, _ = run(*words)
    assert code == 0 and "2 old runs (ids, ids" in " ".join(said.split())
    assert len(library.entries()) == 1
    assert not (tmp_path / "runs").exists()


def test_commands_know_runs_by_their_names(home, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seeds.run(home / "a", end="finished")
    assert library.named(Path("a")) == home / "a"
    assert run("figure", "memory", "--run", "a", "--out", "memory.csv")[0] == 0
    (tmp_path / "a").mkdir()
    assert library.named(Path("a")) == Path("a")
    for unknown in (Path("../library/a"), Path("b"), Path("/etc"), Path("..")):
        assert library.named(unknown) == unknown


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_nll_that_is_no_number_is_told_as_the_models_and_not_as_damage(home, run, wrong):
    save(made_up(60), home / "a", text_sha256="", weights_sha256="")
    rewrite_nll(home / "a" / "tokens.parquet", 20, wrong)
    with pytest.raises(ValueError, match=r"token 20 of lane 0 of .* no finite number: the model gave none in float32"):
        load(home / "a")
    entry = library.entry("a")
    assert (entry.kind, entry.preview, entry.goes_on) == ("reading", None, False)
    for words in (("runs",), ("runs", "show", "a")):
        code, said, _ = run(*words)
        assert code == 0 and "Reading" in said and "finite" in said and "amaged" not in said


def test_a_run_is_shown_by_its_folder_wherever_it_lies(home, run, tmp_path):
    save(made_up(60), tmp_path / "elsewhere" / "a", text_sha256="", weights_sha256="")
    code, said, _ = run("runs", "show", str(tmp_path / "elsewhere" / "a"))
    assert code == 0 and "Reading" in said and "Dense" in said and names() == []
    assert run("runs", "show", str(tmp_path / "elsewhere" / "b"))[0] == 2


@pytest.mark.parametrize(
    "words",
    [
        ("runs", "list", "--runs", ""),
        ("runs", "list", "--runs="),
        ("runs", "export", "a", "--out", ""),
        ("stream", "--out", ""),
        ("knockout", "--out", ""),
        ("recall", "passkey", "--out", ""),
        ("compare", "--out", ""),
        ("reproduce", "sinks", "--out", ""),
        ("gallery", "drop", "--out", ""),
        ("site", "--out", ""),
        ("report", "--run", "a", "--out", "a.html", "--stretch", ""),
    ],
)
def test_an_empty_name_of_a_folder_is_not_the_one_that_one_works_in(run, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, said = run(*words)
    assert code == 2 and "it is empty: name a file or a folder, or leave the option out" in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "which"),
    [
        (("figure", "perplexity", "--run", "", "--out", "a.pdf"), "--run"),
        (("figure", "perplexity", "--run", "a", "--out", ""), "--out"),
        (("report", "--run", "", "--out", "a.html"), "--run"),
        (("report", "--run", "a", "--out", ""), "--out"),
        (("tiny", "--out", ""), "--out"),
        (("resume", ""), "folder"),
        (("runs", "import", ""), "zip_files"),
    ],
)
def test_what_must_be_named_is_not_named_by_nothing(run, words, which):
    code, _, said = run(*words)
    assert code == 2 and said.endswith("it is empty: name a file or a folder\n") and which in said


@pytest.mark.parametrize("name", ["-a", "--runs", "it's a b"])
def test_a_command_that_is_said_of_a_run_takes_it_whatever_it_is_called(home, run, capsys, name):
    seeds.run(home / name, end="finished")
    said = run("runs", "delete", "--", name)[1]
    words = shlex.split(said.split(" is deleted: ")[1].removesuffix(" brings it back\n"))
    assert run(*words[words.index("runs") :]) == (0, f"{name} is back\n", "") and names() == [name]
    say_how_to_go_on(Path(name))
    assert shlex.split(capsys.readouterr().out)[-2:] == (["--", name] if name[0] == "-" else ["resume", name])
