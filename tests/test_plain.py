"""Texts of others are shown as text: nothing in them is Markdown, and an address reaches no file and no network."""

import socket

import pytest
from markdown_it import MarkdownIt

from app import address
from app.panels import tables
from app.plain import JOINER, markup, plain

NASTY = (
    "![x](http://127.0.0.1:9/a.png)",
    "[x](http://127.0.0.1:9/)",
    "[x]: http://127.0.0.1:9/",
    "![x][y]",
    "<img src=http://127.0.0.1:9/>",
    "<http://127.0.0.1:9/>",
    "http://127.0.0.1:9/ www.example.com someone@example.com",
    "**bold** _slanted_ `code` ~~gone~~",
    "# heading",
    "1. list",
    "- list",
    "> quote",
    "| a | b |",
    "&lt;b&gt; &#33;[x](y)",
    "\\![x](y) \\\\[x](y)",
    "a\n\n    code\n\n![x](y)",
    "***\n---\n===",
    "tests_of_names.txt 4 + 252, C:\\new",
)


@pytest.mark.parametrize("text", NASTY)
def test_a_text_is_shown_letter_by_letter(text):
    (_, inline, _) = MarkdownIt("gfm-like", {"linkify": False}).enable(["strikethrough"]).parse(plain(text))
    assert {t.type for t in inline.children} <= {"text", "text_special"}
    shown = "".join(t.content for t in inline.children)
    assert shown.replace(JOINER, "") == " ".join(text.split())


def test_what_is_found_when_escapes_are_gone_is_broken_up():
    for text in (
        "http://x",
        "HTTPS://x",
        "www.x.y",
        "a@b.cd",
        ":smile:",
        ":material/home:",
        "a -> b",
        "x >= y",
        "-- a",
    ):
        assert JOINER in plain(text)
    for text in ("4 + 252, first of macbeth", "leave it (no --bos)", "12 %: 3", "C:\\new", "a_b"):
        assert JOINER not in plain(text)
    for text in (":red[x]", ":small[x]", "$x$", "$$"):
        assert plain(text).startswith("\\")


def test_labels_of_plots_have_no_tags():
    assert markup("<b>x</b> & <a href='y'>") == "&lt;b&gt;x&lt;/b&gt; &amp; &lt;a href='y'&gt;"
    assert "%{" not in markup("%{y}")


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network is asked")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize(
    "written",
    [
        "duo:scores=http://127.0.0.1:9/x",
        "duo:scores=![x](http://127.0.0.1:9/x)",
        "duo:scores=/dev/zero",
        "duo:scores=README.md",
        "duo:scores=file:///etc/passwd",
        "duo:scores=\\\\host\\share",
    ],
)
def test_an_address_names_no_file(no_network, written):
    with pytest.raises(ValueError, match="pages read no files by name"):
        address.lanes([written], 6, "read")


def test_an_address_has_its_bounds():
    assert address.lanes(["duo:scores=1 0.5; 0 -2e-3"], 6, "read") == [
        "duo:full=50,sinks=64,window=256,positions=text,scores=1 0.5; 0 -2e-3"
    ]
    with pytest.raises(ValueError, match="at most 6 lanes read at a time, not 7"):
        address.lanes(["dense"] * 7, 6, "read")
    with pytest.raises(ValueError, match="at most 16777216, not a number of more than 15 digits"):
        address.policy("window:window=99999999999999999999")
    with pytest.raises(ValueError, match=r"heads cannot be '9{5}\.0'"):
        address.policy("dense:knockout=values,heads=99999.0")
    for wrong in ("nan", "inf", "1e999"):
        with pytest.raises(ValueError, match="logit must be at"):
            address.policy(f"dense:softmax=logit,logit={wrong}")
    for name in ("hamlet.md", "../hamlet", "x" * 9999, "\0", "/etc/passwd"):
        with pytest.raises(ValueError, match="no bundled text") as e:
            address.text(name)
        assert len(str(e.value)) < 120
    for name in ("nobody/nothing", "/tmp", "~", "http://127.0.0.1:9/", "x" * 9999):
        with pytest.raises(ValueError, match="not in use here") as e:
            address.model(name, {"somebody/something"})
        assert len(str(e.value)) < 240
    assert address.model("somebody/something", {"somebody/something"}) == "somebody/something"


def test_every_setting_is_bounded_and_quoted_in_a_line():
    from analysis.figures import FIGURES
    from analysis.policies import POLICIES

    for kind in (*POLICIES.values(), *FIGURES.values()):
        for field in kind.settings():
            said = []
            for value in ("9" * 30, "-" + "9" * 30, "²", "x" * 100_000, "![x](y)" * 40, "1e400", "\0"):
                try:
                    kind.parse(f"{field.name}={value}")
                except ValueError as e:
                    said.append(str(e))
            assert len(said) >= 2 and max(map(len, said)) < 900, (kind, field.name)


def test_a_number_and_its_sign_stay_in_one_line_of_a_table(monkeypatch):
    shown = []
    monkeypatch.setattr(tables.st, "table", lambda rows, **_: shown.extend(rows))
    tables.draw([{"50 %": "0 to 56 %", "a*b": "x % y"}])
    assert shown == [{"50\u00a0%": "0 to 56\u00a0%", plain("a*b"): "x\u00a0% y"}]
