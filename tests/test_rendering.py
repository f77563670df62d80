"""A chat template renders in bounded time and memory, and as transformers renders it."""

import time

import pytest

from analysis.chat import rendering
from analysis.chat.rendering import TemplateFailed, rendered

pytestmark = pytest.mark.whole

ASKED = ((("hello",), True), (("hello", "hi", "more"), False))
LIMITED = "more time or memory"


def test_a_template_writes_what_transformers_writes():
    template = (
        "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content | tojson }}{% if loop.index > 9 %}{% break %}"
        "{% endif %}{% generation %}!{% endgeneration %}\n{% endfor %}{% if add_generation_prompt %}?{% endif %}"
    )
    from transformers.utils.chat_template_utils import render_jinja_template

    turns = [[{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(said)] for said, _ in ASKED]
    wanted = tuple(
        render_jinja_template([of], chat_template=template, bos_token="<s>", add_generation_prompt=answer)[0][0]
        for of, (_, answer) in zip(turns, ASKED, strict=True)
    )
    assert rendered(template, (("bos_token", "<s>"),), ASKED) == wanted


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="this system's clock has one time zone")
def test_a_template_writes_the_date_of_the_day_on_which_it_is_asked(monkeypatch):
    """As Llama 3.2's does, for a server that has run since yesterday."""
    days = []
    try:
        for zone in ("Etc/GMT+12", "Etc/GMT-14"):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            days.append((rendered("{{ strftime_now('%d %b %Y') }}", (), ASKED)[0], time.strftime("%d %b %Y")))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert [found for found, _ in days] == [wanted for _, wanted in days] and days[0] != days[1]


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ 10 ** (10 ** 10) }}", LIMITED),
        ("{{ 'a' * 10 ** 10 }}", LIMITED),
        ("{% for i in range(99999) %}{{ 'sixteen letters.' }}{% endfor %}", LIMITED),
        ("{{ raise_exception('no') }}", "it refuses a conversation"),
    ],
)
def test_a_template_that_takes_too_much_is_stopped(monkeypatch, template, why):
    monkeypatch.setattr(rendering, "SECONDS", 1)
    with pytest.raises(TemplateFailed, match=why):
        rendered(template, (), ASKED)


def test_a_template_that_waits_is_stopped(monkeypatch):
    """Where a system bounds no processor's time, the clock does."""
    monkeypatch.setattr(rendering, "PATIENCE", 0.2)
    begun = time.monotonic()
    with pytest.raises(TemplateFailed, match="does not come to an end"):
        rendered("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %} ", (), ASKED)
    assert time.monotonic() - begun < 5
