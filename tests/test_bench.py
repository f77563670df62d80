"""What the benchmarks write: rows that stand beside a peer as one table, all of them as JSON, and their figure."""

import json
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest
import torch

from analysis.figures.sheet import Layout, rendered
from tests.bench import report
from tests.bench.figure import Ratios
from tests.bench.report import Report, Row, compared, finish, head, line, part, read, table

pytestmark = pytest.mark.whole


@pytest.fixture
def rows(monkeypatch) -> list[Row]:
    """Of a report that begins anew."""
    monkeypatch.setattr(report, "REPORT", Report())
    part("engine")
    head("float32, 4 + 252 cached tokens")
    line("    cost of sink mass", 4.0, "≤ 5", unit="%", good=True)
    compared("float32, chunks of 512", "a loop", theirs=8.0, ours=240.0, unit="tokens/s", asked=35)
    compared("float32, best chunks", "a plain pass", theirs=200.0, ours=236.0, unit="tokens/s", asked=1.15, ratio=1.16)
    compared("float32, both in 256", "a plain pass", theirs=200.0, ours=190.0, unit="tokens/s")
    return report.REPORT.rows


def test_a_row_says_where_it_belongs_and_what_it_is_compared_with(rows):
    cost, loop, best, same = rows
    assert {(row.part, row.section) for row in rows} == {("engine", "float32, 4 + 252 cached tokens")}
    assert (cost.name, cost.value, cost.good, cost.peer) == ("cost of sink mass", 4.0, True, "")
    assert (loop.value, loop.asked, loop.mark, loop.good) == (30.0, 35, "≥ 35", False)
    # The median of paired turns, and not what the two medians give.
    assert (best.value, best.good) == (1.16, True)
    assert (same.value, same.asked, same.mark, same.good) == (0.95, None, "", None)


def test_the_table_has_peer_ours_ratio_and_mark(rows):
    header, section, loop, best, same = table(rows)
    assert header.split() == ["peer", "unit", "peer", "ours", "ratio", "asked"]
    assert section == "float32, 4 + 252 cached tokens"
    assert loop.split() == [*"float32, chunks of 512 a loop tokens/s 8.0 240.0 30.00 × ≥ 35 MISSED".split()]
    assert best.endswith("1.16 ×  ≥ 1.15  ok") and same.endswith("0.95 ×")
    assert table(rows[:1]) == []


def test_what_is_written_as_json_is_read_again_as_it_was(rows, tmp_path, capsys):
    finish(tmp_path / "bench.json")
    found = read(tmp_path / "bench.json")
    assert list(found.rows) == rows and not found.toy and found.began == report.REPORT.began
    assert found.machine.cores >= 1 and found.machine.memory == psutil.virtual_memory().total
    assert found.machine.threads == torch.get_num_threads() and found.machine.processor
    assert found.machine.versions["torch"] == torch.__version__
    written = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert set(written) == {"machine", "began", "commit", "toy", "rows"}
    assert {"processor", "cores", "instructions", "threads", "versions", "load"} <= set(written["machine"])
    assert {"name", "peer", "theirs", "ours", "value", "asked", "good", "mark", "unit"} <= set(written["rows"][0])
    assert "\n".join(table(rows)) in capsys.readouterr().out


def test_a_toy_is_not_judged(rows, monkeypatch):
    monkeypatch.setattr(report, "TOY", True)
    line("time", 1.0, "≤ 2", good=True)
    compared("a", "b", theirs=1.0, ours=1.0, unit="tokens/s", asked=2)
    assert [row.good for row in rows[-2:]] == [None, None] and report.REPORT.measured().toy


def test_the_figure_has_a_bar_for_each_ratio_that_was_asked(rows):
    from matplotlib.figure import Figure

    data = Ratios().numbers(report.REPORT.measured())
    assert data["name"].tolist() == ["float32, chunks of 512", "float32, best chunks"]
    assert data["ratio"].tolist() == [30.0, 1.16] and data["asked"].tolist() == [35, 1.15]
    ax = Ratios().draw(data, ax=Figure().subplots())
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "Against a loop",
        "float32, chunks of 512",
        "Against a plain pass",
        "float32, best chunks",
    ]
    # From 1 to the ratio; what is missed has its colour and its hatch.
    ends = {round(bar.get_x() + bar.get_width(), 6): bar.get_hatch() for bars in ax.containers for bar in bars}
    assert ends == {30.0: "////", 1.16: ""}
    assert rendered(Ratios(), data, "svg", Layout(), {}).startswith(b"<?xml")


@pytest.mark.parametrize(
    ("change", "sentence"), [({"toy": True}, "a toy say nothing"), ({"rows": ()}, "nothing stands beside a peer")]
)
def test_what_has_no_ratios_makes_no_figure(rows, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        Ratios().numbers(replace(report.REPORT.measured(), **change))


def test_a_file_of_another_kind_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "other.json").write_text('{"rows": []}')
    with pytest.raises(ValueError, match=r"is not what python -m tests\.bench --json writes"):
        read(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [(["speed"], "there is no part speed"), (["--json", "no/such/folder/a.json"], "there is no folder no/such/folder")],
)
def test_what_cannot_be_is_refused_before_anything_is_measured(words, sentence):
    done = subprocess.run([sys.executable, "-m", "tests.bench", *words], capture_output=True, text=True)
    assert done.returncode == 2 and sentence in done.stderr
