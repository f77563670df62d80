"""A text that is read into memory is read as by the command."""

from pathlib import Path

import numpy as np
import pytest

from analysis import Spec, load, parse, run_of, show
from analysis.runs.folder import save
from analysis.runs.reader import load as load_run

POLICIES = ("dense", "streaming:sinks=4,window=12", "window:window=16")


def test_a_run_in_memory_equals_what_the_command_writes_to_a_folder(tmp_path, run):
    code, _, _ = run(
        "stream", "--model", "tiny-gpt-oss", "--tokens", "80", "--chunk", "32", "--device", "cpu", "--out",
        str(tmp_path / "run"), *(word for policy in POLICIES for word in ("--policy", policy)),
    )  # fmt: skip
    assert code == 0
    written = load_run(tmp_path / "run")
    made = run_of(written.spec, load(**written.spec.loading))
    assert made.spec == written.spec and made.pieces == written.pieces and made.status == written.status
    assert (made.model, made.begins, made.first_token) == (written.model, written.begins, written.first_token)
    for mine, other in zip(made.tracks, written.tracks, strict=True):
        np.testing.assert_array_equal(mine.nll.view(), other.nll.view())
        np.testing.assert_array_equal(mine.cache_bytes.view(), other.cache_bytes.view())
        np.testing.assert_allclose(mine.sink_mass, other.sink_mass, atol=1e-6)
        assert mine.spans == other.spans and len(mine.nll) == 79


def test_a_run_in_memory_can_be_kept(model, text, tmp_path):
    spec = Spec(model, text, POLICIES[1:], tokens=60, device="cpu")
    made = run_of(spec, load(**spec.loading))
    save(made, tmp_path / "run", text_sha256="", weights_sha256="")
    np.testing.assert_array_equal(load_run(tmp_path / "run").tracks[1].nll.view(), made.tracks[1].nll.view())


def test_a_model_that_computes_in_other_numbers_than_the_spec_says_is_refused(model, text):
    spec = Spec(model, text, POLICIES, dtype="bfloat16", device="cpu")
    with pytest.raises(ValueError, match=r"computes in float32, and the Spec says bfloat16: load it by load\(\*\*spec"):
        run_of(spec, load(model, device="cpu"))


def test_a_model_with_other_kv_heads_than_the_spec_says_is_refused():
    spec = Spec("tiny-gpt-oss", "hamlet", POLICIES, tokens=40, device="cpu", kv_heads=1)
    with pytest.raises(ValueError, match=r"has 2 KV heads, and the Spec says 1: load it by load\(\*\*spec"):
        run_of(spec, load("tiny-gpt-oss", device="cpu"))
    assert run_of(spec, load(**spec.loading)).model.kv_heads == 1


def test_a_model_whose_kv_heads_are_averaged_is_refused_where_the_spec_does_not_say_so():
    spec = Spec("tiny-gpt-oss", "hamlet", POLICIES, tokens=40, device="cpu")
    averaged = load("tiny-gpt-oss", device="cpu", kv_heads=1)
    with pytest.raises(ValueError, match=r"averaged down to 1, and the Spec leaves them .*: load it by load\(\*\*spec"):
        run_of(spec, averaged)
    # As many as it came with are its own.
    assert run_of(spec, load("tiny-gpt-oss", device="cpu", kv_heads=2)).model.kv_heads == 2


def test_another_model_than_the_spec_names_is_refused(model, text, monkeypatch):
    with pytest.raises(ValueError, match=r"loaded as .*, and the Spec says 'tiny-gpt-oss': load it by load\(\*\*spec"):
        run_of(Spec("tiny-gpt-oss", text, POLICIES, tokens=40, device="cpu"), load(model, device="cpu"))
    # The same folder, written in another way.
    monkeypatch.chdir(Path(model).parent)
    assert run_of(Spec(Path(model).name, text, POLICIES, tokens=40, device="cpu"), load(model, device="cpu")).tracks


def test_a_run_whose_spec_was_made_of_paths_policies_and_numbers_of_numpy_is_kept_and_shown(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("To be, or not to be, that is the question. " * 4)
    spec = Spec("tiny-gpt-oss", words, map(parse, POLICIES), tokens=np.int64(20), chunk=np.int32(8), device="cpu")
    assert spec == Spec("tiny-gpt-oss", str(words), tuple(str(parse(p)) for p in POLICIES), 20, 8, device="cpu")
    made = run_of(spec, load(**spec.loading))
    save(made, tmp_path / "run", text_sha256="", weights_sha256="")
    assert load_run(tmp_path / "run").spec == spec == Spec.from_json(spec.to_json())
    assert repr(show(made)) == repr(show(tmp_path / "run"))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"policies": "dense"}, r"policies are several, such as \('dense',\)"),
        ({"tokens": "60"}, "tokens must be a whole number, not '60'"),
        ({"tokens": 60.5}, "tokens must be a whole number, not 60.5"),
        ({"chunk": None}, "chunk must be at least 1 token, not None"),
        ({"kv_heads": 1.0}, "kv_heads must be a whole number, not 1.0"),
    ],
)
def test_what_is_wrong_with_a_spec_is_one_sentence(wrong, says):
    with pytest.raises(ValueError, match=says):
        Spec(**{"model": "tiny-gpt-oss", "text": "hamlet", "policies": POLICIES} | wrong)
