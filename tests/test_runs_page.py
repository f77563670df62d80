"""Laws of the runs page, without a browser: what it lists, does and says."""

import base64
import io
import json
import os
import re
import zipfile
from shutil import copytree

import pytest
from streamlit.testing.v1 import AppTest

from analysis import COMMAND, texts
from analysis.figures import FIGURES
from analysis.figures.thumbnails import sink_grid, sparkline
from analysis.runs import library, trash
from analysis.runs.archive import export
from analysis.runs.folder import save
from analysis.runs.preview import preview_of
from analysis.runs.spec import Spec
from app.jobs.loading import Models
from app.jobs.reading import ReadingJob
from app.panels import figure_source, run_list
from app.panels.run_list import AT_ONCE, words_of
from app.plain import plain

from .fuzz import seeds
from .fuzz.addresses import MAIN, live, markdown
from .recordings import made_up

pytestmark = pytest.mark.whole

NASTY = "![x](http://127.0.0.1:9/zq.png) <img src=x> $x$ :material/home: **b**"


def opened(**asked) -> AppTest:
    at = AppTest.from_file(MAIN, default_timeout=60).switch_page("views/runs.py")
    for name, values in asked.items():
        at.query_params[name] = values
    at.run()
    assert not at.exception
    return at


def said(at: AppTest) -> str:
    return "\n".join(e.value for kind in (at.markdown, at.error, at.info, at.success, at.caption) for e in kind)


def listed(at: AppTest) -> list[str]:
    return [h.proto.body for h in at.get("html") if "<h2>" in h.proto.body]


def test_empty_library_says_how_one_gets_a_run(home):
    at = opened()
    assert "There is no run here yet" in said(at) and "python -m analysis stream" in said(at)
    assert [link.proto.label for link in at.get("page_link")][:2] == [
        "Read a text under several policies", "Talk to a model that forgets",
    ]  # fmt: skip


def test_runs_are_listed_named_pinned_deleted_and_brought_back(home):
    seeds.run(home / "a", end="finished")
    seeds.run(home / "b", end="interrupted", chat=True)
    (home / "c").mkdir()
    (home / "c" / "run.json").write_text("{")
    at = opened()
    assert len(listed(at)) == 3 and "2 runs" not in said(at) and "3 runs" in said(at)
    assert any("sk-run-bad" in words for words in listed(at))
    at.button("runs-pin-a").click().run()
    assert library.entry("a").label.pinned and "· pinned ·" in listed(at)[0]
    at.text_input("runs-title-a-0").set_value(NASTY).run()
    assert library.entry("a").title == NASTY and not at.exception
    at.button("runs-delete-a").click().run()
    assert len(listed(at)) == 2 and "Deleted: " + plain(NASTY) in said(at)
    assert not any(live(words) for words in markdown(at._tree) if "zq" in words and "Deleted" not in words)
    at.button("runs-undo").click().run()
    assert len(listed(at)) == 3 and library.entry("a").title == NASTY and "Deleted" not in said(at)


def test_a_double_click_on_delete_deletes_once(home, monkeypatch):
    seeds.run(home / "a", end="finished")
    at, gone = opened(), []
    # The second click comes before the row has gone from the screen.
    monkeypatch.setattr(trash, "delete", lambda name: gone.append(name) or "1")
    for _ in range(2):
        at.button("runs-delete-a").click().run()
    assert gone == ["a"] and not at.error


def test_search_shows_what_has_all_words_and_the_address_says_them(home):
    for name in ("a", "b"):
        seeds.run(home / name, end="finished")
    library.rename("b", "Sinks")
    at = opened()
    at.text_input("runs-search").set_value("sinks HAMLET").run()
    assert len(listed(at)) == 1 and at.query_params["search"] == "sinks HAMLET"
    assert len(listed(opened(search="sinks"))) == 1
    assert "No run is of" in said(opened(search=NASTY))


def test_marks_stay_while_a_search_hides_them(home):
    for name in ("a", "b"):
        seeds.run(home / name, end="finished")
        library.rename(name, f"title {name}")
    at = opened()
    at.checkbox("runs-mark-a").check().run()
    at.text_input("runs-search").set_value("title b").run()
    at.checkbox("runs-mark-b").check().run()
    assert not at.button("runs-compare").disabled
    at.text_input("runs-search").set_value("").run()
    assert at.checkbox("runs-mark-a").value and at.checkbox("runs-mark-b").value
    assert sorted(at.query_params["marked"]) == ["a", "b"]
    at.checkbox("runs-mark-a").uncheck().run()
    assert at.button("runs-compare").disabled
    there = opened(marked=["b", "gone", NASTY])
    assert there.checkbox("runs-mark-b").value and not there.checkbox("runs-mark-a").value
    assert there.query_params["marked"] == "b"


def test_long_lists_are_shown_piece_by_piece(home):
    seeds.run(home / "a", end="finished")
    for i in range(AT_ONCE + 3):
        (home / f"r{i:02}").mkdir()
        for file in (home / "a").iterdir():
            (home / f"r{i:02}" / file.name).write_bytes(file.read_bytes())
    at = opened()
    assert len(listed(at)) == AT_ONCE
    at.button("runs-more").click().run()
    assert len(listed(at)) == AT_ONCE + 4


def test_runs_whose_names_have_the_same_letters_are_listed_beside_each_other(home):
    seeds.run(home / "中文", end="finished")
    for name in ("日本", "a b", "a-b", "x" * 61, "x" * 62):
        copytree(home / "中文", home / name)
    assert len(listed(opened())) == 6


def test_a_page_gives_out_a_run_whose_checkpoint_alone_is_too_large(home):
    seeds.run(home / "a", end="interrupted")
    (home / "a" / "checkpoint").mkdir()
    with open(file := home / "a" / "checkpoint" / "00000001.safetensors", "wb") as f:
        f.truncate(65_000_000)
    assert "too large for a page" not in said(opened())
    file.rename(home / "a" / "maps.arrow")
    assert "too large for a page" in said(opened())


def test_commands_for_a_run_are_quoted_for_a_shell(home):
    for name in ("a b", "-c"):
        seeds.run(home / name, end="interrupted")
    typed = [code.value for code in opened().get("code")]
    assert {f"{COMMAND} resume 'a b'", f"{COMMAND} resume -- -c"} <= {*typed}


def upload(at: AppTest, data: bytes) -> None:
    at.file_uploader(f"runs-upload-{at.session_state['revision']}").set_value(
        [("x.zip", data, "application/zip")]
    ).run()
    assert not at.exception


def test_zip_file_is_taken_in_and_a_hostile_one_gets_one_sentence(home, tmp_path):
    seeds.run(home / "a", end="finished")
    file = io.BytesIO()
    export("a", file)
    trash.delete("a")
    at = opened()
    upload(at, file.getvalue())
    assert [e.name for e in library.entries()] == ["a"] and "is in the library now" in said(at)
    evil = io.BytesIO()
    with zipfile.ZipFile(evil, "w") as z:
        z.writestr("a/run.json", "{}")
        z.writestr("../../evil", "x")
    before = sorted(str(p) for p in tmp_path.rglob("*"))
    upload(at, evil.getvalue())
    assert [e.value for e in at.error] == [
        "This .zip file is not taken in: its file '../../evil' would lie outside of the library."
    ]
    assert sorted(str(p) for p in tmp_path.rglob("*")) == before
    assert "is in the library now" not in said(at)


def test_runs_are_compared_and_the_address_says_which(home):
    seeds.run(home / "a", end="finished")
    seeds.run(home / "b", end="finished", chat=True)
    library.rename("a", NASTY)
    at = opened()
    assert at.button("runs-compare").disabled
    at.checkbox("runs-mark-a").check().run()
    assert at.button("runs-compare").disabled
    at.checkbox("runs-mark-b").check().run()
    at.button("runs-compare").click().run()
    assert not at.exception and sorted(at.query_params["compare"]) == ["a", "b"]
    assert "All lanes have read the same tokens" in said(at)
    (table,) = [h.proto.body for h in at.get("html") if "<table>" in h.proto.body]
    assert table.count("<tr>") == 5 and "reference" in table and "<img" not in table
    assert table.count("<td>embedded, float32</td>") == 4
    assert len(at.selectbox) == 2
    at.button("runs-back").click().run()
    assert "compare" not in at.query_params and len(listed(at)) == 2


@pytest.mark.parametrize("page", ["comparison", "figure"])
def test_a_run_that_went_on_is_read_again_where_the_clock_was_ahead_when_another_file_was_written(home, page):
    seeds.run(home / "a", end="finished")

    def shown() -> str:
        if page == "figure":
            found = figure_source.source_of(FIGURES["perplexity"], "", str(home / "a"), False)
            return str(len(found.data.tracks[0].nll) + 1)
        at = opened(compare=["a"])
        (table,) = [h.proto.body for h in at.get("html") if "<table>" in h.proto.body]
        return re.findall(r"<td>(.*?)</td>", table)[2]

    (ahead := home / "a" / "maps.arrow").write_bytes(b"")
    os.utime(ahead, (2**32, 2**32))
    assert shown() == "40"
    save(made_up(30, seeds.POLICIES), home / "b", text_sha256="t", weights_sha256="w")
    for file in (home / "b").iterdir():
        file.replace(home / "a" / file.name)
    assert shown() == "30"


def test_address_says_the_curves_and_the_lanes_whose_grids_are_shown(home):
    for name in ("a", "b"):
        seeds.run(home / name, end="finished")
    at = opened(compare=["a", "b"])
    assert {"mode", "lanes"}.isdisjoint(at.query_params)
    at.button_group("runs-mode-relative").set_value("cumulative").run()
    at.selectbox("runs-grid-1-2").select_index(1).run()
    assert not at.exception and "shown relative" not in said(at)
    asked = {name: at.query_params[name] for name in ("mode", "lanes")}
    assert asked == {"mode": "cumulative", "lanes": "0.1"}
    there = opened(compare=["a", "b"], mode="cumulative", lanes="0.1")
    assert there.button_group("runs-mode-relative").value == "cumulative"
    assert [s.index for s in there.selectbox] == [0, 1]
    there.button("runs-back").click().run()
    assert {"compare", "mode", "lanes"}.isdisjoint(there.query_params)


@pytest.mark.parametrize(
    ("asked", "wrong"),
    [
        ({"mode": "fast"}, "mode must be one of relative, rolling, cumulative, not 'fast'"),
        ({"lanes": "0.9"}, "lanes must be written 0.0, a lane of each run, not '0.9'"),
        ({"lanes": NASTY}, "lanes must be written"),
    ],
)
def test_what_of_a_comparison_cannot_be_is_one_sentence_and_the_rest_is_shown(home, asked, wrong):
    for name in ("a", "b"):
        seeds.run(home / name, end="finished")
    at = opened(compare=["a", "b"], **asked)
    assert wrong in said(at).replace("\\", "") and "That is left out." in said(at)
    assert "All lanes have read the same tokens" in said(at) and len(at.selectbox) == 2
    assert {"mode", "lanes"}.isdisjoint(at.query_params)


def test_a_comparison_says_which_run_is_not_here_and_is_the_same_once_it_has_come(home):
    for name in ("a", "b", "c"):
        seeds.run(home / name, end="finished")
    file = io.BytesIO()
    export("b", file)
    trash.delete("b")
    asked = {"mode": "cumulative", "lanes": "0.1.1"}
    at = opened(compare=["a", "b", "c"], **asked)
    assert "The library here has no 'b': export it where the link comes from" in said(at)
    assert at.button_group("runs-mode-relative").value == "cumulative"
    assert [s.index for s in at.selectbox] == [0, 1]
    # What is looked at here takes nothing from the run that is not.
    at.selectbox("runs-grid-0-2").select_index(1).run()
    assert {name: at.query_params[name] for name in asked} == asked | {"lanes": "1.1.1"}
    upload(at, file.getvalue())
    assert "is in the library now" in said(at) and "has no" not in said(at)
    assert at.button_group("runs-mode-relative").value == "cumulative"
    assert [s.index for s in at.selectbox] == [1, 1, 1] and at.query_params["compare"] == ["a", "b", "c"]


def test_of_a_comparison_whose_runs_are_not_here_the_address_stays_for_when_they_come(home):
    seeds.run(home / "a", end="finished")
    asked = {"mode": "cumulative", "lanes": "1.0"}
    at = opened(compare=["b", "a"], **asked)
    assert "which has no 'b': export it" in said(at) and len(at.selectbox) == 1
    gone = opened(compare=["b", "c"], **asked)
    assert "which has no 'b' and no 'c': export them" in said(gone) and not gone.selectbox
    for page in (at, gone):
        assert {name: page.query_params[name] for name in asked} == asked


@pytest.mark.parametrize("names", [["a"], ["a", "a"], ["a", "gone"], ["../a", "/etc"], [NASTY, "x" * 9999]])
def test_comparison_of_what_is_not_there_gets_a_sentence(home, names):
    seeds.run(home / "a", end="finished")
    at = opened(compare=names)
    assert "fewer than two of these runs" in said(at).lower()


def test_what_is_in_the_library_and_cannot_be_compared_is_not_said_to_be_missing(home):
    seeds.run(home / "a", end="finished")
    seeds.run(home / "talk", end="finished", chat=True)
    seeds.trainings(home / "grown")
    assert "fewer than two of these runs are readings or conversations" in said(opened(compare=["a", "grown"])).lower()
    assert "1 of the runs that the address names are neither" in said(opened(compare=["a", "talk", "grown"]))


def test_sink_grids_of_several_runs_have_one_scale(home):
    for name in "ab":
        seeds.run(home / name, end="finished")
    parts = [part.proto for part in opened(compare=["a", "b"]).get("bidi_component")]
    grids = [json.loads(json.loads(part.json)["figure"])["data"][0] for part in parts if "runs-mass" in part.id]
    assert [(grid["zmin"], grid["zmax"]) for grid in grids] == [(0, 1)] * 2


def test_small_curves_are_as_long_as_what_their_lanes_have_read():
    drawn = sparkline(preview_of(made_up(3000, ends={1: 1000, 2: 40, 3: 20})))
    lines = re.findall('points="(.*?)"', base64.b64decode(re.search('base64,([^"]+)', drawn)[1]).decode())
    ends = [float(line.split()[-1].partition(",")[0]) if line else None for line in lines]
    # Curves begin at token 32, and the longest has all of the 114 pixels between the edges.
    assert ends == pytest.approx([117, 3 + 114 * 967 / 2967, 3 + 114 * 7 / 2967, None], abs=0.1)


def test_perplexities_of_different_numbers_of_tokens_say_of_how_many(home):
    for name, ends in (("a", {1: 1000, 2: 40}), ("b", {})):
        save(made_up(3000, ends=ends), home / name, text_sha256="", weights_sha256="")
    apart, alike = (words_of(entry, "") for entry in map(library.entry, "ab"))
    assert "<p>Up to 3,000 tokens, perplexity: " in apart and "<p>3,000 tokens, perplexity: " in alike
    assert re.findall("</b> of ([0-9,]+)<", apart) == ["3,000", "1,000", "40", "3,000"] and "</b> of" not in alike


def test_words_of_a_run_are_text(home):
    seeds.run(home / "a", end="finished", model='<b onclick="x">')
    library.rename("a", "<script>x</script>")
    entry = library.entry("a")
    body = words_of(entry, entry.title)
    assert "<script" not in body and "<b onclick" not in body and "&lt;script&gt;" in body
    assert sparkline(entry.preview).startswith("<img") and sink_grid(entry.preview).startswith("<img")


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [("reading", "hamlet", "Hamlet"), ("measures", "hamlet", "Measures: Hamlet"), ("costs", "mine.txt", "Costs: mine")],
)
def test_a_list_calls_a_bundled_text_by_its_title_whatever_was_done_with_it(home, kind, text, said):
    assert run_list.titled(library.Entry("a", home / "a", 0.0, 0, kind=kind, text=text)) == said
    job = ReadingJob(Spec("tiny", text, ("dense",), 9), texts.from_bytes(b"To be", text), Models())
    assert job.about == f"reading of {'Hamlet' if text == 'hamlet' else text}"
