"""Laws of the command line: one line for whatever is wrong, a record and a table for whatever is right."""

import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import fields, replace

import pyarrow.parquet as pq
import pytest
from rich.table import Table

from analysis import SETUP, texts
from analysis.cli import grids
from analysis.cli import main as cli
from analysis.cli.console import out, print_table, right, say
from analysis.cli.terminal import typed
from analysis.experiments.ablation import EffectsFile
from analysis.figures import FIGURES
from analysis.metrics import excess, perplexity
from analysis.policies import POLICIES, parse
from analysis.runs.reader import load
from analysis.runs.spec import Sampling, Spec


def test_stream_writes_a_run_and_prints_its_table(run, model, text, tmp_path):
    lanes = ["dense", "window:window=32", "recompute:window=32,stride=8"]
    options = [part for lane in lanes for part in ("--policy", lane)]
    code, said, wrong = run(
        "stream",
        "--model",
        model,
        "--text",
        text,
        "--device",
        "cpu",
        "--chunk",
        "64",
        *options,
        "--out",
        str(tmp_path / "o"),
    )
    assert code == 0, wrong
    assert "\x1b" not in said
    written = load(tmp_path / "o")
    dense, window, _ = (track.nll.view() for track in written.tracks)
    assert [len(t.nll) for t in written.tracks] == [599] * 3
    assert f"{perplexity(dense):.4f}" in said
    mean, error = excess(window, dense)
    assert f"{mean:+.4f} ± {error:.4f}" in said
    assert "reference" in said
    about = json.loads((tmp_path / "o" / "run.json").read_text())
    assert about["status"] == "finished"
    assert about["spec"]["policies"] == lanes


def test_more_tokens_than_the_text_has_is_the_whole_text(run, model, text, tmp_path):
    code, *_ = run(
        *("stream", "--model", model, "--text", text, "--device", "cpu", "--tokens", "100000", "--policy", "dense"),
        *("--out", str(tmp_path / "o")),
    )
    assert code == 0
    assert len(load(tmp_path / "o").tracks[0].nll) == 599


def test_warnings_are_printed_and_recorded(run, model, text, tmp_path):
    code, said, _ = run(
        *("stream", "--model", model, "--text", text, "--device", "cpu", "--tokens", "50"),
        *("--policy", "window:window=64", "--policy", "window:window=5000", "--out", str(tmp_path / "o")),
    )
    assert code == 0
    warned = [e for e in load(tmp_path / "o").events if e["what"] == "warning"]
    assert [e["lane"] for e in warned] == [0, 1, 1]
    assert all(e["text"] in said for e in warned)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--policy", "nothing"], "there is no policy"),
        (["--policy", "window:window=0"], "at least 1"),
        (["--policy", "window:size=3"], "no setting"),
        (["--policy", "window:window=x"], "whole number"),
        (["--tokens", "1"], "at least 2"),
        (["--tokens", "many"], "--tokens"),
        (["--chunk", "0"], "at least 1"),
        (["--dtype", "int8"], "dtype"),
        (["--device", "tpu"], "device"),
        (["--unknown"], "--unknown"),
        (["--text", "no-such-text"], "no-such-text"),
        (["--text", "."], "not a file"),
        (["--model", "/no/such/folder"], "no model"),
        (["--model", ""], "no model ''"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(run, wrong, says):
    code, _, said = run("stream", "--device", "cpu", *wrong)
    assert code == 2
    assert re.fullmatch(r"error: [^\n]+\n", said)
    assert says in said


def test_a_run_is_never_overwritten(run, model, text, tmp_path):
    (tmp_path / "run.json").write_text("{}")
    code, _, said = run("stream", "--model", model, "--text", text, "--device", "cpu", "--out", str(tmp_path))
    assert code == 2
    assert re.fullmatch(r"error: [^\n]+\n", said)
    assert (tmp_path / "run.json").read_text() == "{}"


def test_a_name_with_brackets_is_shown_as_it_is(run, model, text, tmp_path):
    place = tmp_path / "[draft]"
    code, said, _ = run(
        *("stream", "--model", model, "--text", text, "--device", "cpu", "--tokens", "50", "--policy", "dense"),
        *("--out", str(place)),
    )
    assert code == 0
    assert str(place) in said


@pytest.mark.real
def test_chat_plays_a_script_and_writes_a_run(run, tmp_path):
    script = tmp_path / "script.jsonl"
    script.write_text('{"turns": ["What is the capital of France?", "And of Italy?"]}')
    code, said, wrong = run(
        *("chat", "--device", "cpu", "--weights", "int4", "--max-new", "9", "--script", str(script)),
        *("--policy", "dense", "--policy", "streaming:sinks=4,window=28", "--out", str(tmp_path / "o")),
    )
    assert code == 0, wrong
    assert "> And of Italy?" in said and said.count("Paris") == 2 and "int4 weights, bfloat16 products" in said
    table = pq.read_table(tmp_path / "o" / "tokens.parquet").to_pandas()
    assert set(table["role"]) == {"template", "user", "assistant"}
    written = load(tmp_path / "o")
    assert written.spec.sampling.max_new == 9 and written.spec.weights == "int4"
    for lane, track in enumerate(written.tracks):
        rows = table[table["lane"] == lane]
        assert rows["position"].tolist() == list(range(len(rows)))
        assert rows["nll"].isna().tolist() == [True] + [False] * (len(rows) - 1)
        assert len(track.roles) == len(track.nll) == len(rows) - 1
        assert rows["seconds"].is_monotonic_increasing
    assert written.tracks[1].cache_tokens.view().max() == 32
    answers = [e for e in written.events if e["what"] == "answer"]
    assert [e["lane"] for e in answers] == [0, 1, 0, 1] and all(e["why"] for e in answers)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--max-new", "0"], "error: --max-new must be"),
        (["--temperature", "-1"], "error: --temperature must be"),
        (["--top-p", "0"], "error: --top-p must be"),
        (["--weights", "int2"], "error: --weights must be"),
        (["--kv-chunk", "0"], "error: --kv-chunk must be"),
        (["--script", "nothing"], "no script"),
        (["--script", ""], "no script"),
        (["--policy", "nothing"], "there is no policy"),
    ],
)
def test_what_is_wrong_with_a_chat_is_one_line_and_status_2(run, wrong, says):
    code, _, said = run("chat", "--device", "cpu", *wrong)
    assert code == 2
    assert re.fullmatch(r"error: [^\n]+\n", said)
    assert says in said


def test_chat_needs_a_tokenizer(run, model, tmp_path):
    code, _, said = run("chat", "--device", "cpu", "--model", model, "--out", str(tmp_path / "o"))
    assert code == 2 and "no tokenizer" in said


def test_heads_are_knocked_out_one_after_the_other(run, model, text, tmp_path):
    to = tmp_path / "heads.csv"
    asked = ["knockout", "--device", "cpu", "--model", model, "--text", text, "--tokens", "80", "--out", str(to)]
    code, _, said = run(*asked, "--kind", "keys")
    assert code == 2 and "--kind must be one of" in said and not to.exists()
    code, said, _ = run(*asked, "--policy", "streaming:sinks=4,window=20", "--layer", "1")
    rows = [line.split(",") for line in to.read_text().splitlines()[1:]]
    assert code == 0 and "All 4 heads" in said
    assert [row[0] for row in rows] == ["1"] * 4 and {row[1] for row in rows} == set("0123")
    effects = [float(row[2]) for row in rows]
    assert effects == sorted(effects, reverse=True) and effects[0] != effects[-1]
    code, _, said = run(*asked)
    assert code == 2 and "exists already" in said
    code, _, said = run(*asked[:-2], "--layer", "99")
    assert code == 2 and "there is no layer 99" in said


def test_knock_outs_that_are_interrupted_say_so(run, model, text, tmp_path, monkeypatch):
    to, real = tmp_path / "heads.csv", EffectsFile.add

    def add(self, effect):
        real(self, effect)
        if len(to.read_text().splitlines()) == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(EffectsFile, "add", add)
    asked = ("--model", model, "--text", text, "--device", "cpu", "--tokens", "80", "--layer", "1")
    code, said, _ = run("knockout", *asked, "--out", str(to))
    assert code == 130 and f"2 of 4 heads: {to}" in said and "All" not in said
    assert len(to.read_text().splitlines()) == 3


class _Asked(Exception):
    """Carries the Spec that a command line was understood as."""


@pytest.mark.parametrize(
    "spec",
    [
        Spec("embedded", "hamlet", ("dense",)),
        Spec(
            "/models/it's $HOME `x`", "a b/c'd \"e\".txt", ("dense", "window:window=64", "streaming:sinks=4,window=60"),
            tokens=777, chunk=33, dtype="bfloat16", device="cpu", bos=True, weights="int8", kv_heads=1,
        ),
        Spec("-odd", "--text", ("duo:full=25", "dense:knockout=values,heads=1.2"), dtype="float16"),
        Spec(
            "embedded", "questions", ("dense",), chunk=17, weights="int4", kv_heads=3, kv_chunk=9,
            sampling=Sampling(7, 0.1, 5, 0.35, 1.25, 2**40),
        ),
        Spec("embedded", "what was typed", ("dense",), chunk=256, device="cpu", sampling=Sampling(temperature=1e-3)),
    ],
)  # fmt: skip
def test_command_of_a_spec_is_read_as_that_spec(run, monkeypatch, spec):
    def asked(*values, **named):
        raise _Asked(Spec(*values, **named))

    spec = replace(spec, policies=tuple(str(parse(p)) for p in spec.policies))
    words = shlex.split(spec.command())
    assert words[:3] == ["python", "-m", "analysis"]
    monkeypatch.setattr(f"analysis.cli.{'chat' if spec.sampling else 'reading'}.Spec", asked)
    monkeypatch.setattr(sys, "argv", ["analysis", *words[3:]])
    with pytest.raises(_Asked) as seen:
        cli.main()
    assert seen.value.args[0] == spec


def test_command_of_a_spec_names_all_that_it_has():
    more = {"bos": "on", "special": "tokens", "fidelity": True}
    spec = Spec("embedded", "hamlet", ("dense", "window"), tokens=5, kv_heads=1, **more)
    chat = Spec("embedded", "questions", ("dense",), sampling=Sampling(), kv_chunk=3)
    flags = {word.partition("=")[0] for one in (spec, chat) for word in shlex.split(one.command())}
    names = {f.name for f in fields(Spec)} - {"policies", "sampling"} | {f.name for f in fields(Sampling)} | {"policy"}
    # A field that is added to a Spec is an option too.
    assert {f"--{name.replace('_', '-')}" for name in names} <= flags


def test_a_command_names_numbers_with_all_their_digits():
    asked = {"depths": (100 / 3, 5.0, 0.1), "lengths": (64, 128), "tasks": ("kl", "passkey")}
    said = Spec("embedded", "passkey", ("dense",)).command_line("compare", **asked)
    assert "--depths=33.333333333333336,5,0.1 --lengths=64,128 --tasks=kl,passkey " in said


@pytest.mark.parametrize(
    ("command", "says"), [("policies", "streaming"), ("texts", "hamlet"), ("models", "embedded"), ("--help", "stream")]
)
def test_lists_say_what_there_is(run, command, says):
    code, said, _ = run(command)
    assert code == 0
    assert says in said


def test_where_no_text_is_bundled_yet_what_installs_them_is_said(run, monkeypatch):
    monkeypatch.setattr(texts, "plays", dict)
    assert run("texts")[1] == f"No text is here yet: {SETUP} installs the plays.\n"


def test_lines_of_help_end_where_the_terminal_does(run):
    for name in cli.COMMANDS:
        assert all("\n" not in paragraph for paragraph in cli.command(name).help.split("\n\n"))
    assert "Begun again, it goes on." in " ".join(run("recall", "--help")[1].split())


def test_the_help_of_a_figure_names_all_that_figures_are_made_of(run):
    said = run("figure", "--help")[1]
    assert not [figure.needs for figure in FIGURES.values() if figure.needs not in said]


def test_the_help_of_a_capture_names_all_policies_that_a_stretch_can_be_of(run):
    said = run("capture", "--help")[1]
    assert not [name for name in POLICIES if parse(name).capturable and name not in said]


def test_without_a_command_the_help_is_printed_once(run):
    code, said, wrong = run()
    assert (code, said.count("Usage:"), wrong) == (2, 1, "") and "stream" in said


def test_no_word_and_no_number_of_a_table_is_cut_on_a_narrow_terminal(monkeypatch, capsys):
    table = Table(
        "Lane", *map(right, ("Tokens", "Perplexity", "Excess NLL", "KL", "Top-1", "Kept", "Cache", "Tokens/s"))
    )
    rows = [
        ["Dense", "12,300", "23.0512", "reference", "0.0000", "100.00 %", "12,299", "10.3 MB", "980.1"],
        ["Sinks + window 4 + 60", "12,300", "19.9212", "-0.14 ± 0.01", "0.34 ± 0.02", "77.26 %", "64", "0.3 MB", "1.1"],
    ]
    for row in rows:
        table.add_row(*row)
    for width in (140, 100, 80, 40):
        monkeypatch.setattr(out, "width", width)
        print_table(table)
        said = capsys.readouterr().out
        # Eight columns have no room in 40: then lines are as long as they must be.
        assert max(map(len, said.splitlines())) <= max(width, 80)
        words = re.split(r"[\s│┃]+", said)
        assert {word for row in rows for cell in row for word in cell.split()} <= set(words)


def test_names_that_look_like_markup_are_printed_as_they_are(monkeypatch, capsys):
    monkeypatch.setattr(out, "width", 140)
    grids.show("Read by /models/[old]", ["Policy", "a[1].txt"], [["[draft]:key:", "[/] 2.0"]], "Of [notes]")
    out.print("No cache is as good on [draft].txt", soft_wrap=True)
    say("It lies in runs/a:key:b")
    said = capsys.readouterr().out
    for name in ("[old]", "a[1].txt", "[draft]:key:", "[/] 2.0", "[notes]", "on [draft].txt", "a:key:b"):
        assert name in said


def test_nothing_that_is_printed_steers_the_terminal(capsys):
    """Answers of a model, names and texts may hold anything."""
    out.print("a\x1b[2Jb\x9b1m\x07\n\tc é 漢", soft_wrap=True)
    say("\x1b]0;title\x1b\\\r")
    said = capsys.readouterr().out
    assert "a\\x1b[2Jb\\x9b1m\\x07\n" in said and "c é 漢" in said and "\\x1b]0;title" in said
    assert not {*said} & {"\x1b", "\x9b", "\x07", "\r"}


def test_whoever_closes_the_pipe_ends_a_run_that_keeps_what_it_has(model, text, tmp_path):
    asked = ["--model", model, "--text", text, "--device", "cpu", "--policy", "dense", "--out", str(tmp_path / "o")]
    command = [sys.executable, "-m", "analysis", "stream", *asked]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        # A slow machine says first that it loads.
        assert any("BOS" in line for line in iter(process.stdout.readline, ""))
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait() == 128 + signal.SIGPIPE
    assert load(tmp_path / "o").status in ("interrupted", "finished")


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_what_an_output_cannot_hold_ends_no_command(encoding):
    command = [sys.executable, "-m", "analysis", "figures"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding}, check=True)
    assert b"attention-strip" in done.stdout and b"?1" in done.stdout and not done.stderr


@pytest.mark.parametrize(
    ("errors", "says"), [("surrogateescape", r"not UTF-8 \(byte 3 is 0xe9\): save"), ("strict", "not utf-8: write")]
)
def test_what_is_typed_and_is_no_text_is_said(monkeypatch, errors, says):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), "utf-8", errors))
    with pytest.raises(ValueError, match=f"what was typed is {says}"):
        next(typed(out))


def test_an_interrupted_command_says_so(run, monkeypatch, tmp_path):
    def interrupted(*words, **how):
        raise KeyboardInterrupt

    monkeypatch.setattr("analysis.figures.report.report", interrupted)
    code, _, said = run("report", "--run", str(tmp_path), "--out", str(tmp_path / "a.html"))
    assert code == 130 and said == "Interrupted.\n"


def test_an_interrupted_import_ends_a_command_by_its_status_and_by_no_signal():
    """Python kills itself where Ctrl-C ended the evaluation of a text, as of a dataclass that a library makes."""
    code = "from analysis.cli import main\nmain.app = lambda **how: exec('raise KeyboardInterrupt')\nmain.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "Interrupted.\n")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("stream", "--chunk=0"), "--chunk must be at least 1 token, not 0"),
        (("chat", "--max-new", "0"), "--max-new must be at least 1 token, not 0"),
        (("stream", "--dtype", "half"), "--dtype must be float32, bfloat16 or float16, not 'half'"),
    ],
)
def test_what_is_wrong_with_an_option_names_the_option(run, words, says):
    assert run(*words)[2] == f"error: {says}\n"
