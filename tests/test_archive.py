"""Laws of .zip files of runs: what is packed comes back, and nothing else ever lies anywhere."""

import io
import json
import os
import random
import re
import stat
import struct
import zipfile
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from analysis.experiments.ablation import Effect, effects_as_csv
from analysis.experiments.recall.asked import Asked
from analysis.experiments.recall.cells import Row, read_table, rows_of, write_table
from analysis.figures.inputs import check_folder
from analysis.runs import library
from analysis.runs.archive import MAX_FILES, export, take_in
from analysis.runs.reader import load
from analysis.runs.result import ResultFolder
from analysis.runs.run import Run
from analysis.runs.spec import Spec
from analysis.runs.status import here
from app.panels.recall_settings import MOST_CELLS

from .fuzz import seeds
from .fuzz.parsers import FORBIDDEN, judged
from .fuzz.spoil import spoiled, spoiled_json

pytestmark = pytest.mark.whole


@pytest.fixture
def home(tmp_path, monkeypatch):
    place = tmp_path / "under" / "library"
    monkeypatch.setenv("SINKSCOPE_RUNS", str(place))
    return place


def everything(place) -> dict[str, bytes]:
    return {str(p.relative_to(place)): p.read_bytes() for p in sorted(place.rglob("*")) if p.is_file()}


def packed(name: str) -> bytes:
    file = io.BytesIO()
    export(name, file)
    return file.getvalue()


def zipped(entries: dict[str, bytes], how=zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", how) as z:
        for name, data in entries.items():
            z.writestr(name, data)
    return file.getvalue()


@pytest.fixture
def files(home):
    """A finished run, by the names of its files."""
    seeds.run(home / "a", end="finished")
    return {name: data for name, data in everything(home / "a").items() if name != "summary.json"}


@pytest.mark.parametrize("kind", ["run", "growing", "chat", "stretch", "trainings", "grid", "knockouts"])
def test_what_is_packed_comes_back_as_it_was(home, kind):
    if kind == "stretch":
        seeds.stretch(home / "a", seeds.model(home.parent / "model"))
    elif kind == "trainings":
        seeds.trainings(home / "a")
    elif kind == "grid":
        seeds.run(home / "a" / "one", end="finished")
        seeds.run(home / "a" / "two", end="finished")
    elif kind == "knockouts":
        run = Run(Spec("embedded", "hamlet", ("dense",)))
        folder = ResultFolder(home / "a", kind, run, text_sha256="t", weights_sha256="w")
        (home / "a" / "effects.csv").write_text(effects_as_csv([Effect(0, 1, 0.5, 0.1)]))
        folder.finish("finished")
    else:
        seeds.run(home / "a", end="" if kind == "growing" else "finished", chat=kind == "chat")
    library.rename("a", "中文 & <b>")
    name = take_in(io.BytesIO(packed("a")), check_folder)
    assert name == "a-2"
    mine, theirs = (
        {k: v for k, v in everything(home / n).items() if k.split("/")[-1] not in ("summary.json", ".reserve")}
        for n in ("a", "a-2")
    )
    if kind == "growing":
        # Whoever writes the one does not write the other.
        assert library.entry("a").status == "running" and library.entry("a-2").status == "interrupted"
        mine, theirs = ({k: v for k, v in of.items() if k != "run.json"} for of in (mine, theirs))
    assert mine == theirs
    before, after = library.entry("a"), library.entry("a-2")
    assert (before.kind, before.title, before.preview) == (after.kind, after.title, after.preview)
    assert not [p for p in home.iterdir() if p.name.startswith(".import")]


@pytest.mark.parametrize("name", ["effects.csv", "verdict.json", "recall.parquet"])
def test_a_result_whose_table_is_damaged_is_not_taken_in(home, files, name):
    about = json.loads(files["run.json"]) | {"kind": "verdict"}
    damaged = {"run.json": json.dumps(about).encode(), name: b"garbage"}
    with pytest.raises(ValueError, match=f"^this .zip file is not taken in: .*{name}"):
        take_in(io.BytesIO(zipped({f"a/{n}": data for n, data in damaged.items()})), check_folder)


def test_a_map_of_as_many_cells_as_a_page_asks_for_comes_back_whole(home):
    asked = Asked("passkey", tuple(range(100, 120)), tuple(map(float, range(25))), 4, 0)
    spec = Spec("embedded", asked.task, ("dense", "streaming:sinks=4,window=252,positions=cache"))
    cells, model = asked.cells(spec), SimpleNamespace(sha256="w" * 64)
    assert len(cells) == MOST_CELLS
    # The longest name that a run may have.
    name = "r" * 200
    folder, rows = asked.folder(spec, home / name), []
    for cell in cells:
        row = Row(
            cell.task, cell.spec.policies[0], *cell.place, 0, True, 0.1, "12345", "12345", 99, None, 1.0
        )  # fmt: skip
        (home / name / cell.name).mkdir()
        (home / name / cell.name / "run.json").write_text(cell.about([row], model))
        rows.append(row)
    write_table(rows, home / name)
    folder.finish("finished")
    taken = take_in(io.BytesIO(packed(name)), check_folder)
    assert rows_of(cells, home / taken) == read_table(home / taken) == rows


def test_what_no_library_would_take_in_is_not_packed(home):
    for i in range(MAX_FILES + 1):
        (home / "a" / f"{i}").mkdir(parents=True)
        (home / "a" / f"{i}" / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=f"a has {MAX_FILES + 1:,} files, and a .zip file of a run at most"):
        packed("a")


def test_checkpoints_own_files_and_what_is_remade_stay_behind(home, files):
    (home / "a" / "checkpoint").mkdir()
    (home / "a" / "checkpoint" / "state.safetensors").write_bytes(b"x")
    (home / "a" / "notes.txt").write_text("mine")
    os.symlink("/etc/passwd", home / "a" / "table.md")
    with zipfile.ZipFile(io.BytesIO(packed("a"))) as z:
        assert {n.removeprefix("a/") for n in z.namelist()} == files.keys()


def test_export_to_a_file_is_whole_or_not_at_all(home, files, tmp_path):
    export("a", tmp_path / "a.zip")
    assert take_in(tmp_path / "a.zip", check_folder) == "a-2"
    with pytest.raises(ValueError, match="cannot be written"):
        export("a", tmp_path / "nowhere" / "a.zip")
    with pytest.raises(ValueError, match="no run"):
        export("../a", tmp_path / "b.zip")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zip", "under"]


def test_files_without_a_folder_and_what_macs_put_beside_are_taken(home, files):
    assert take_in(io.BytesIO(zipped(files)), check_folder).startswith("imported")
    more = {f"x y/{name}": data for name, data in files.items()}
    more |= {"__MACOSX/x y/._run.json": b"x", "x y/.DS_Store": b"x", "x y/summary.json": b"x"}
    name = take_in(io.BytesIO(zipped(more)), check_folder)
    assert name == "x-y" and not library.entry(name).problem
    assert load(home / name).tracks[0].nll.view().tolist() == load(home / "a").tracks[0].nll.view().tolist()


def link(name: str, target: bytes, mode: int = stat.S_IFLNK) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as z:
        info = zipfile.ZipInfo(name)
        info.create_system, info.external_attr = 3, (mode | 0o777) << 16
        z.writestr(info, target)
    return file.getvalue()


def lying(data: bytes, name: bytes, size: int) -> bytes:
    """The same, but for the size of a file in the list at the end."""
    made, at = bytearray(data), data.index(b"PK\x01\x02")
    while made[at + 46 : at + 46 + len(name)] != name:
        at = data.index(b"PK\x01\x02", at + 4)
    made[at + 24 : at + 28] = struct.pack("<I", size)
    return bytes(made)


def twice(entries: dict[str, bytes], name: str) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as z:
        for n, data in entries.items():
            z.writestr(n, data)
        with pytest.warns(UserWarning, match="Duplicate"):
            z.writestr(name, b"{}")
    return file.getvalue()


def hostile(files: dict[str, bytes]) -> dict[str, tuple[Callable[[], bytes], str]]:
    """.zip files of many kinds of harm, each made when it is asked for, and a part of what is said of each."""
    whole = zipped(files)
    other = {k: v for k, v in files.items() if k != "run.json"}
    about = json.loads(files["run.json"])
    return {
        "absolute": (lambda: zipped({**files, "/tmp/evil": b"x"}), "outside"),
        "up": (lambda: zipped({**files, "../evil": b"x"}), "outside"),
        "up inside": (lambda: zipped({**files, "a/../../evil": b"x"}), "outside"),
        "up with backslashes": (lambda: zipped({**files, "..\\evil": b"x"}), "outside"),
        "drive": (lambda: zipped({**files, "C:evil": b"x"}), "outside"),
        "share": (lambda: zipped({**files, "\\\\host\\evil": b"x"}), "outside"),
        "backslash": (lambda: zipped({**files, "a\\evil": b"x"}), "has a name"),
        "stream of a file": (lambda: zipped({**files, "run.json:evil": b"x"}), "has a name"),
        "escape": (lambda: zipped({**files, "\x1b[2Jevil": b"x"}), "has a name"),
        "right to left": (lambda: zipped({**files, "\u202egnp.exe": b"x"}), "has a name"),
        "dots": (lambda: zipped({**files, "./evil": b"x"}), "has a name"),
        "no name": (lambda: zipped({**files, "a//evil": b"x"}), "has a name"),
        "zero": (lambda: zipped({**files, "evilXevil": b"x"}).replace(b"evilXevil", b"evil\0evil"), "has a name"),
        "link": (lambda: link("run.json", b"/etc/passwd"), "is a link"),
        "linked folder": (lambda: link("a", b"/etc"), "is a link"),
        "device": (lambda: link("run.json", b"", stat.S_IFCHR), "is no file"),
        "pipe": (lambda: link("run.json", b"", stat.S_IFIFO), "is no file"),
        "file and folder": (lambda: zipped({**files, "run.json/run.json": b"x"}), "no run has a file"),
        "other file": (lambda: zipped({**files, "evil.py": b"x"}), "no run has a file"),
        "deep": (
            lambda: zipped({f"a/b/{name}": data for name, data in files.items()} | {"a/b/c/run.json": b"x"}),
            "no run has",
        ),
        "two runs": (lambda: zipped({f"{i}/x/{n}": d for n, d in files.items() for i in "12"}), "no run has a file"),
        "two runs that do not belong together": (
            lambda: zipped(
                {f"{i}/{n}": d for n, d in files.items() for i in "12"}
                | {"2/run.json": files["run.json"].replace(b'"hamlet"', b'"macbeth"')}
            ),
            "pack each of them by itself",
        ),
        "twice": (lambda: twice(files, "run.json"), "twice"),
        "many": (lambda: zipped({f"{i}/run.json": b"" for i in range(MAX_FILES + 1)}), "files"),
        "far too many": (lambda: zipped({f"{i}/run.json": b"" for i in range(40_000)}), "more files than any run has"),
        "bomb": (lambda: zipped({**files, "maps.npz": bytes(2**25)}), "times its size"),
        "larger than the library": (lambda: lying(whole, b"run.json", 2**32 - 2), "holds 4.3 GB"),
        "larger than it says": (lambda: lying(whole, b"tokens.parquet", 10), "damaged"),
        "smaller than it says": (lambda: lying(whole, b"tokens.parquet", 10**6), "damaged"),
        "other packing": (lambda: zipped(files, zipfile.ZIP_BZIP2), "pack it with deflate"),
        "password": (
            lambda: whole.replace(b"PK\x01\x02\x14\x03\x14\0\0\0", b"PK\x01\x02\x14\x03\x14\0\1\0"),
            "password",
        ),
        "cut": (lambda: whole[: len(whole) // 2], "damaged"),
        "no zip": (lambda: b"x" * 1000, "damaged"),
        "empty": (lambda: b"", "damaged"),
        "nothing": (lambda: zipped({}), "holds no run"),
        "only folders": (lambda: zipped({"a/": b"", "b/": b""}), "holds no run"),
        "only hidden": (lambda: zipped({".run.json": b"{}"}), "holds no run"),
        "only a table": (lambda: zipped({"recall.parquet": b"x", "a/table.csv": b"x"}), "holds no run"),
        "no run.json": (lambda: zipped(other), "no readable run.json"),
        "other run.json": (lambda: zipped({**other, "run.json": b"[]"}), "not that of a run"),
        "other kind": (lambda: zipped({**other, "run.json": json.dumps({**about, "kind": "evil"}).encode()}), "kind"),
        "damaged table": (lambda: zipped({**files, "tokens.parquet": b"PAR1"}), "not a table"),
        "damaged texts": (lambda: zipped({**files, "events.jsonl": b"{}\n{}"}), "no event"),
    }


KINDS = list(hostile({"run.json": b"{}", "tokens.parquet": b"x"}))


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_file_is_refused_in_one_sentence_and_leaves_nothing(home, files, kind, tmp_path):
    make, said = hostile(files)[kind]
    data = make()
    before = everything(tmp_path)
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        take_in(io.BytesIO(data), check_folder)
    sentence = str(refused.value)
    assert "\n" not in sentence and len(sentence) < 500 and sentence.isprintable()
    assert not FORBIDDEN.search(sentence) and ".import-" not in sentence
    assert everything(tmp_path) == before
    assert sorted(p.name for p in home.iterdir()) == ["a"]


def test_spoiled_files_are_refused_or_read_whole(home, files, tmp_path):
    chance, whole = random.Random(0), zipped(files)
    others = list(files.values())
    for _ in range(300):
        if chance.random() < 0.5:
            data = spoiled(whole, chance, others)
        else:
            name = chance.choice(list(files))
            text = name.endswith(".json")
            made = spoiled_json(files[name].decode(), chance).encode() if text else spoiled(files[name], chance, others)
            data = zipped({**files, name: made})
        found = judged(lambda data=data: load(home / take_in(io.BytesIO(data), check_folder)), repr(data[:80]))
        assert isinstance(found, bool), found
    assert not any(e.problem for e in library.entries())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["under"]
    assert [p.name for p in home.iterdir() if p.name.startswith(".")] == []


def test_imported_run_belongs_to_no_process(home, files):
    about = json.loads(files["run.json"]) | {"status": "running", "process": here()}
    name = take_in(io.BytesIO(zipped({**files, "run.json": json.dumps(about).encode()})), check_folder)
    assert not library.entry(name).live and "process" not in json.loads((home / name / "run.json").read_text())


def test_place_that_cannot_be_written_is_said(home, files, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="cannot be written"):
        take_in(io.BytesIO(zipped(files)), check_folder, tmp_path / "file")
    with pytest.raises(ValueError, match="cannot be read"):
        take_in(tmp_path / "gone.zip", check_folder)
