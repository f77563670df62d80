"""What a widget begins with that keeps its choice, in a browser that has forgotten it."""

import pytest
from streamlit.testing.v1 import AppTest


def script():
    import streamlit as st

    from app.choices import kept_default, kept_index, kept_value

    options = ("a", "b", "c")
    if st.toggle("Shown", value=True):
        st.text_input("Text", **kept_value("text", "a"))
        st.segmented_control("Segments", options, required=True, **kept_default("segments", "a", options))
        st.selectbox("Box", options, **kept_index("box", "a", options))


def defaults(at: AppTest) -> tuple:
    """What a browser takes that has no value of its own."""
    assert not at.exception
    (segments,) = at.get("button_group")
    return at.text_input[0].proto.default, list(segments.proto.default), at.selectbox[0].proto.default


@pytest.mark.parametrize("hidden", [False, True])
def test_the_default_is_what_is_chosen(hidden):
    at = AppTest.from_function(script).run()
    assert defaults(at) == ("a", [0], 0)
    at.text_input[0].set_value("c")
    at.get("button_group")[0].set_value("b")
    at.selectbox[0].set_value("c").run()
    if hidden:
        at.toggle[0].set_value(False).run()
        at.toggle[0].set_value(True).run()
    assert defaults(at) == ("c", [1], 2)


def test_what_is_no_option_any_longer_is_not_chosen():
    at = AppTest.from_function(script)
    at.session_state.box = "d"
    assert defaults(at.run()) == ("a", [0], 0) and at.session_state.box == "a"


def layout_script():
    import streamlit as st

    from app.panels import figure_layout

    if "taken" not in st.session_state:
        st.session_state.taken = True
        figure_layout.take(st.query_params.to_dict())
    layout, _ = figure_layout.controls()
    usual = figure_layout.now()["points"] == figure_layout.usual(layout.venue)["points"]
    st.text(f"{layout.venue} {layout.text_size:g} {usual}")


def test_a_size_of_text_that_nobody_chose_goes_with_the_venue():
    at = AppTest.from_function(layout_script).run()
    said = [at.text[0].value]
    for venue in ("slides", "acl", "slides"):
        said.append(at.selectbox[0].set_value(venue).run().text[0].value)
    said.append(at.number_input[0].set_value(20.0).run().text[0].value)
    said.append(at.selectbox[0].set_value("acl").run().text[0].value)
    assert said[:3] == ["neurips 8 True", "slides 14 True", "acl 8 True"]
    assert said[3:] == ["slides 14 True", "slides 20 False", "acl 20 False"]
    linked = AppTest.from_function(layout_script)
    linked.query_params["venue"] = "slides"
    assert linked.run().text[0].value == "slides 14 True" and not at.exception
