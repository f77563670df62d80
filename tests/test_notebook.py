"""What a notebook shows is what was computed; nothing leaves its frame, and what cannot be shown is one sentence."""

import ast
import base64
import gzip
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from analysis import load, map_of, show
from analysis.figures.notebook import LONGEST
from analysis.runs import library
from analysis.runs.codec import FLOOR, TOP
from analysis.runs.folder import save
from analysis.runs.library import GALLERY
from analysis.runs.player import BOARD, CONVERSATION, script
from analysis.runs.run import Run
from analysis.runs.spec import Spec

from .recordings import FOUR, decoded, made_up

pytestmark = pytest.mark.whole

WORDS = ["</script><i>", ' "to"', " be'", " &amp;", "\n", "<b>"]


def made_map(tokens=WORDS, head=(2, 1), policy="dense", seed=0):
    """A map with made-up weights whose rows sum to 1."""
    weights = np.tril(np.random.default_rng(seed).random((len(tokens), len(tokens))) ** 4).astype(np.float32)
    weights[np.triu_indices(len(tokens), 1)] = np.nan
    weights /= np.nansum(weights, 1, keepdims=True)
    return {"map": weights, "tokens": np.array(tokens), "head": np.array(head), "policy": np.array(policy)}


class Elements(HTMLParser):
    """The elements that a browser finds in HTML, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def frame_of(shown) -> tuple[str, dict]:
    """The page in the frame as a browser has it, and the attributes of the frame."""
    elements = Elements(shown._repr_html_()).found
    assert [tag for tag, _ in elements] == ["style", "p", "iframe"]
    return elements[-1][1]["srcdoc"], elements[-1][1]


def data_of(page: str, name: str) -> tuple[dict, dict]:
    """The header and the arrays that stand in a page."""
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    return decoded(gzip.decompress(base64.b64decode(data[name]["packed"])))


def test_a_run_is_shown_with_its_own_numbers_in_the_board_of_the_page():
    run = made_up(700, switches={1: (300, "dense")})
    shown = show(run)
    page, frame = frame_of(shown)
    assert page == shown.page and script(*BOARD) in page
    told, arrays = data_of(page, "recording")
    assert told["total"] == 700 and len(told["lanes"]) == 4
    for lane, track in enumerate(run.tracks):
        np.testing.assert_array_equal(arrays[f"nll{lane}"], track.nll.view())
        assert arrays[f"bytes_from{lane}"][-1] == track.cache_bytes.view()[arrays[f"bytes_at{lane}"][-1]]
    assert [told["vocabulary"][i] for i in arrays["pieces0"]] == run.pieces[0]
    assert repr(shown) == "a play, read by tiny: 700 tokens, 4 lanes" == frame["title"]


def test_a_folder_and_a_name_of_the_library_show_what_memory_does():
    run = made_up(500, FOUR[:2])
    save(run, library.home() / "shown", text_sha256="", weights_sha256="")
    whole = data_of(show(run).page, "recording")
    for place in (library.home() / "shown", str(library.home() / "shown"), "shown"):
        told, arrays = data_of(show(place).page, "recording")
        assert told["vocabulary"] == whole[0]["vocabulary"] and told["lanes"] == whole[0]["lanes"]
        for name in ("nll0", "nll1", "mass1", "pieces0", "tokens_from1"):
            np.testing.assert_array_equal(arrays[name], whole[1][name])


def test_a_conversation_is_shown_in_the_lanes_of_the_chat_page():
    shown = show(GALLERY / "breakdown")
    assert script(*CONVERSATION) in shown.page and "a conversation with SmolLM2-135M" in repr(shown)
    assert data_of(shown.page, "recording")[0]["kind"] == "chat"


def test_a_map_is_shown_with_its_own_weights_and_tokens():
    made = made_map()
    shown = show(made)
    told, arrays = data_of(shown.page, "map")
    assert told["map"]["tokens"] == WORDS and told["map"]["sink_tokens"] == WORDS[:4] and told["head"] == [2, 1]
    weights = np.where(arrays["map"] > 0, FLOOR ** (1 - (arrays["map"] - 1.0) / (TOP - 1)), np.nan)
    np.testing.assert_allclose(weights, np.maximum(made["map"], FLOOR), rtol=2e-4)
    np.testing.assert_array_equal(arrays["map_sinks"], arrays["map"][:, :4])
    assert "map_extra" not in arrays
    assert repr(shown) == "Attention map of layer 2, head 1, Dense: 6 tokens"


def test_weight_that_no_token_got_is_shown_at_the_extra_sink():
    model = load("tiny-gpt-oss", device="cpu")
    made = map_of(model, "To be, or not to be, that is the question.", layer=0, head=0)
    assert "".join(made["tokens"]) == "To be, or not to be, that is the question."
    assert made["map"].shape == (len(made["tokens"]),) * 2 and made["head"].tolist() == [0, 0]
    _, arrays = data_of(show(made).page, "map")
    extra = FLOOR ** (1 - (arrays["map_extra"][:, 0] - 1.0) / (TOP - 1))
    np.testing.assert_allclose(extra + np.nansum(made["map"], 1), 1, atol=1e-3)


@pytest.mark.parametrize("of", ["run", "map"])
def test_a_frame_asks_no_address_and_reaches_nothing_around_it(of):
    page, frame = frame_of(show(made_up(300, FOUR[:1]) if of == "run" else made_map()))
    # Scripts run, as of a page from nowhere: they have no storage, no cookies and no notebook.
    assert frame["sandbox"] == "allow-scripts" and "src" not in frame
    assert "default-src 'none'" in page.partition("<title>")[0]
    assert not re.search(r"<(script|img|link|iframe)[^>]+(src|href)=[\"']?(https?:)?//", page)
    assert "width: 100%" in frame["style"]


def test_the_plotting_script_is_packed_and_a_map_does_without():
    board, drawn = (len(show(what)._repr_html_()) for what in (made_up(400, FOUR[:2]), made_map()))
    # docs/api.md says these.
    assert board < 850_000 and drawn < 70_000


def test_what_was_typed_is_text_and_never_markup():
    run = made_up(300, FOUR[:1])
    run.spec = Spec("tiny", '</script>"><b>&.txt', FOUR[:1])
    run.take_pieces(-1, 0, ["</script><u>"] * 300)
    for shown in (show(run), show(made_map())):
        page, _ = frame_of(shown)
        found = [tag for tag, _ in Elements(page).found]
        assert not {"b", "i", "u"} & set(found)
        assert found.count("script") == page.count("</script>")
    assert "<title>script&gt;&quot;&gt;&lt;b&gt;&amp;.txt, read by tiny</title>" in show(run).page
    assert html.escape(repr(show(run)), quote=True) in show(run)._repr_html_()


SHOWN = r"show takes a run \(a Run, its folder, or its name in the library\), or what map_of returns"


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (7, f"^{SHOWN}, and not int$"),
        (None, f"^{SHOWN}, and not NoneType$"),
        ({"map": np.eye(3), "begin": 0, "scale": 1}, f"^{SHOWN}, and not dict$"),
        ("nobody-made-it", f"^'nobody-made-it' is no folder of a run, and no run of the library: {SHOWN}$"),
        ("a\0b", "is no folder of a run"),
        (Run(Spec("tiny", "a play", FOUR)), "the run has read nothing yet"),
        (made_map() | {"tokens": np.array(["a", "b"])}, r"a row and a column for each of its 2 tokens, not \(6, 6\)"),
        (made_map(["x"] * (LONGEST + 1)), "at most 1,024 tokens, not 1,025: draw it by head_map"),
    ],
)
def test_what_cannot_be_shown_is_said_in_a_sentence(what, says):
    with pytest.raises(ValueError, match=says):
        show(what)


def test_a_folder_of_another_kind_is_refused_in_a_sentence(tmp_path):
    save(made_up(300, FOUR[:1]), tmp_path / "run", text_sha256="", weights_sha256="")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(about | {"kind": "recall"}))
    with pytest.raises(ValueError, match=r"is of another kind \(recall\): show takes a run"):
        show(tmp_path / "run")


@pytest.mark.real
def test_the_notebook_that_compares_runs_from_its_first_cell_to_its_last(capsys):
    import matplotlib.pyplot as plt

    path = Path(__file__).parent.parent / "assets" / "examples" / "compare-two-policies.ipynb"
    space, displayed = {}, []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]), cell["id"])
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, cell["id"], "exec"), space)
            if last is not None:
                # What a cell ends with is displayed.
                displayed.append(eval(compile(ast.Expression(last.value), cell["id"], "eval"), space))
    kept, lost = (float(n) for n in re.findall(r"perplexity ([\d.]+)", capsys.readouterr().out))
    assert lost > 2 * kept and space["ax"].get_xlabel() == "Tokens read"
    board, dense, window = displayed
    assert repr(board) == "hamlet, read by SmolLM2-135M: 400 tokens, 2 lanes"
    np.testing.assert_array_equal(data_of(board.page, "recording")[1]["nll1"], space["run"].tracks[1].nll.view())
    # The head that gives most to the first token gives it nothing once it has gone.
    levels = [data_of(shown.page, "map")[1]["map"] for shown in (dense, window)]
    assert levels[0][-1, 0] > 0.9 * TOP and levels[1][-1, 0] == 0
    plt.close("all")
