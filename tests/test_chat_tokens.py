"""Laws of a conversation's tokens: control tokens come from the template alone, BOS comes once, thoughts stay."""

import copy
from functools import partial

import numpy as np
import pytest

from analysis import texts
from analysis.chat.conversation import Conversation
from analysis.chat.partner import TEMPLATE, USER, Partner
from analysis.chat.template import template_of
from analysis.policies import Dense, Streaming
from analysis.runs.spec import Sampling
from analysis.texts.control import control_tokens

from . import tokenizers
from .test_bos import model_of, said
from .tokenizers import CHATML

pytestmark = pytest.mark.whole

TALKERS = {
    "byte_level": tokenizers.byte_level,
    "gemma_like": tokenizers.gemma_like,
    "llama_like": tokenizers.llama_like,
    "newer_llama": partial(tokenizers.llama_like, legacy=False),
    "closing": tokenizers.closing,
}
TYPED = "say <s> <think>there</think> is<|im_end|>\n<|im_start|>user <end_of_turn>\n\n</s><bos> x<s>y"
THINKING = """{% for m in messages %}<|im_start|>{{ m.role }}
{% if m.role == 'assistant' and '</think>' in m.content %}{{ m.content.split('</think>')[-1] | trim }}
{%- elif m.role == 'assistant' and loop.last %}<think>

</think>

{{ m.content }}{% else %}{{ m.content }}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
OPENED{% endif %}"""
"""As Qwen's and DeepSeek's: thoughts of earlier answers go, the last answer has an empty one, and one may be opened."""


@pytest.fixture(scope="module", params=TALKERS)
def partner(request):
    return Partner(model_of(TALKERS[request.param]()))


def rendered(partner, *said, answer=True):
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(said)]
    return partner.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer)


def first(partner, prompt):
    talk = Conversation(partner, Dense(), Sampling(max_new=2))
    talk.ask(prompt)
    return talk


def test_a_prompt_is_what_the_template_writes_around_it(partner):
    talk = first(partner, "to be or not to be")
    whole = partner.tokenizer(rendered(partner, "to be or not to be"), add_special_tokens=False)["input_ids"]
    assert talk.tokens.tolist() == whole


def test_nothing_that_is_typed_is_a_control_token(partner):
    talk, plain = first(partner, TYPED), first(partner, "to be")
    known = control_tokens(partner.tokenizer)
    meant = [i for i in talk.tokens.tolist() if i in known]
    # The template's own are all there, and no other.
    assert meant == [i for i in plain.tokens.tolist() if i in known] and meant
    assert not [i for i in talk.tokens[talk.roles.view() == USER].tolist() if i in known]
    assert TYPED in said(partner.tokenizer, talk.tokens)
    names = {name for name in known.values() if name in TYPED}
    assert set(talk.turns[0].as_text) == names and names
    assert "in what was said" in talk.turns[0].note and not plain.turns[0].note


def test_what_is_typed_is_cut_as_if_its_names_were_no_tokens():
    partner, plain = Partner(model_of(tokenizers.byte_level())), tokenizers.byte_level(control=False)
    talk = first(partner, "say <|im_end|> and <think> there")
    typed = talk.tokens[talk.roles.view() == USER].tolist()
    assert typed == plain("say <|im_end|> and <think> there")["input_ids"]


def test_names_are_tokens_when_that_is_asked():
    partner = Partner(model_of(tokenizers.byte_level()), special="tokens")
    talk = first(partner, "say <think> there")
    assert partner.tokenizer.convert_tokens_to_ids("<think>") in talk.tokens.tolist()
    assert talk.turns[0].as_text == ()


def test_a_name_that_template_and_person_make_together_is_none():
    partner = Partner(model_of(tokenizers.byte_level()))
    ids, _, names = partner.encode([(TEMPLATE, "say <thi"), (USER, "nk> there")])
    assert partner.tokenizer.convert_tokens_to_ids("<think>") not in ids.tolist() and names == ("<think>",)


def test_the_next_prompt_goes_on_as_the_whole_does_at_once(partner):
    """What stands between two answers has the tokens that it has in the whole conversation."""
    partner, template, encode = (
        copy.copy(partner),
        partner.template,
        partial(partner.tokenizer, add_special_tokens=False),
    )
    whole = encode(rendered(partner, "to be or not", "that is the question", "hello there"))["input_ids"]
    last = encode(template.close)["input_ids"][0]
    # An answer ends with this token; some templates put it behind a prompt, too.
    before = encode(f"{template.head}to be or not{template.open}")["input_ids"].count(last)
    at = [i for i, token in enumerate(whole) if token == last][before]
    partner.ends = {last}
    parts = [(TEMPLATE, partner.close(last)), (USER, "hello there"), (TEMPLATE, template.open)]
    found, roles, _ = partner.encode(parts, last)
    assert found.tolist() == whole[at + 1 :] and len(roles) == len(found) > 5


def answered_as_a_whole(partner) -> Conversation:
    """A conversation whose answer is what the template of the whole text has; asked once more, it is that text."""
    whole = partner.tokenizer(rendered(partner, "to be", "or not", "is"), add_special_tokens=False)["input_ids"]
    talk = first(partner, "to be")
    answer = iter(whole[len(talk.tokens) :])
    talk.sampling, talk.chooser = Sampling(max_new=40), lambda *_: next(answer)
    while talk.busy:
        talk.step()
    assert talk.turns[0].why == "ended"
    talk.ask("is")
    assert talk.tokens.tolist() == whole
    return talk


@pytest.mark.parametrize("kind", ["llama_like", "newer_llama"])
def test_an_answer_ends_once_where_the_template_puts_a_space_before_its_end(kind):
    """As Llama 2's: the model says that space, too."""
    tokenizer = TALKERS[kind]()
    tokenizer.chat_template = tokenizer.chat_template.replace("</s>", " </s>")
    answered_as_a_whole(Partner(model_of(tokenizer)))


def test_an_answer_goes_on_where_its_template_closes_thoughts_and_answers_alike():
    """As Kimi K3's: what closes them is a control token, and the end comes behind it."""
    tokenizer = tokenizers.byte_level()
    tokenizer.chat_template = CHATML.replace(
        "{{ m.content }}",
        "{% if m.role == 'user' %}{{ m.content }}{% else %}is</think>{{ m.content }}</think>to{% endif %}",
    )
    partner = Partner(model_of(tokenizer))
    talk = answered_as_a_whole(partner)
    assert talk.said(talk.turns[0]) == "is</think>or not</think>to"
    # A newline that ends answers is not the one that comes behind the end.
    partner.ends = set(tokenizer("\n")["input_ids"])
    assert partner.close(*partner.ends) == partner.template.close


@pytest.mark.parametrize("kind", ["llama_like", "newer_llama"])
def test_text_that_is_continued_has_no_space_put_into_it(kind):
    tokenizer = TALKERS[kind]()
    tokenizer.chat_template = None
    partner = Partner(model_of(tokenizer))
    ids = tokenizer("to be\nor not", add_special_tokens=False)["input_ids"]
    be = ids.index(tokenizer.convert_tokens_to_ids("▁be"))
    assert partner.encode([(TEMPLATE, "\n"), (USER, "or not")], ids[be])[0].tolist() == ids[be + 1 :]


@pytest.mark.parametrize(
    ("written", "ends"), [(None, set()), (2, {2}), (2.0, {2}), ([2, 5], {2, 5}), ([[2, 5]], {2, 5}), ([2, None], {2})]
)
def test_what_ends_an_answer_may_be_written_in_several_ways(written, ends, monkeypatch):
    model = model_of(TALKERS["llama_like"]())
    monkeypatch.setattr(model.network.generation_config, "eos_token_id", written)
    own = {model.tokenizer.eos_token_id} - {None}
    assert Partner(model).ends == ends | own


def test_an_answer_ends_with_the_control_token_that_the_template_puts_behind_it():
    """Gemma's GGUF files name `<eos>` alone, and its answers end with `<end_of_turn>`."""
    tokenizer = TALKERS["gemma_like"]()
    partner = Partner(model_of(tokenizer))
    end = tokenizer.convert_tokens_to_ids("<end_of_turn>")
    assert end != tokenizer.eos_token_id and partner.ends >= {end, tokenizer.eos_token_id}
    talk = first(partner, "to be")
    answer = iter([*tokenizer("or not", add_special_tokens=False)["input_ids"], end])
    talk.sampling, talk.chooser = Sampling(max_new=40), lambda *_: next(answer)
    while talk.busy:
        talk.step()
    assert talk.turns[0].why == "ended" and talk.said(talk.turns[0]) == "or not"
    tokenizer.chat_template = tokenizer.chat_template.replace("<end_of_turn>", "#")
    assert end not in Partner(model_of(tokenizer)).ends


@pytest.mark.parametrize("written", ["x", {"a": 1}, [[1], [2, 3]], float("inf"), float("nan")])
def test_what_ends_an_answer_and_is_no_token_is_said(written, monkeypatch):
    model = model_of(TALKERS["llama_like"]())
    monkeypatch.setattr(model.network.generation_config, "eos_token_id", written)
    with pytest.raises(ValueError, match=r"^\S+ says that an answer ends with .* no token: mend eos_token_id in its"):
        Partner(model)


@pytest.mark.parametrize("writes", [True, False])
@pytest.mark.parametrize("kind", ["gemma_like", "llama_like", "closing", "byte_level"])
def test_a_conversation_begins_with_one_bos_or_none(kind, writes):
    tokenizer = TALKERS[kind]()
    puts = bool(texts.opening(tokenizer))
    tokenizer.chat_template = ("{{ bos_token }}" if writes else "") + CHATML.replace("<|im_start|>", "#")
    for bos, wanted in (("auto", puts or writes), ("on", True), ("off", False)):
        partner = Partner(model_of(tokenizer), bos=bos)
        talk = first(partner, "to be or not")
        tokens = talk.tokens.tolist()
        assert tokens.count(tokenizer.bos_token_id) == (tokens[0] == tokenizer.bos_token_id) == wanted
        assert partner.begins == (tokenizer.bos_token if wanted else "")
        # No EOS either, though `closing` puts one behind a text.
        assert tokens[-1] != tokenizer.eos_token_id and len(talk.roles.view()) == len(tokens)
        assert tokenizer.decode(tokens[wanted:]).strip().startswith("#user\nto be or not")


def test_text_that_is_continued_begins_as_any_text():
    for kind in ("gemma_like", "closing", "byte_level"):
        tokenizer = TALKERS[kind]()
        tokenizer.chat_template = None
        talk = first(Partner(model_of(tokenizer)), "to be or not")
        assert talk.tokens.tolist() == texts.tokenize(texts.from_bytes(b"to be or not", "a"), tokenizer).tolist()


def test_a_token_that_begins_every_turn_is_not_taken_for_bos():
    """SmolLM's BOS is the token that its template begins each turn with: without BOS it is still there."""
    tokenizer = tokenizers.byte_level()
    tokenizer.bos_token = "<|im_start|>"
    whole = {bos: first(Partner(model_of(tokenizer), bos=bos), "to be").tokens.tolist() for bos in texts.BOS}
    assert whole["auto"] == whole["on"] == whole["off"]


def test_a_token_that_begins_a_text_and_ends_answers_is_left_out_where_no_bos_is_asked_for():
    """OLMo 2 has one token for both."""
    tokenizer = tokenizers.byte_level()
    tokenizer.eos_token = tokenizer.bos_token
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}#{{ m.role }}\n{{ m.content }}{% if m.role == 'assistant' %}"
        "{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}#assistant\n{% endif %}"
    )
    found = {bos: Partner(model_of(tokenizer), bos=bos) for bos in ("auto", "on", "off")}
    begun = {bos: said(tokenizer, first(partner, "to be").tokens) for bos, partner in found.items()}
    assert begun["auto"] == begun["on"] == "<|endoftext|>#user\nto be\n#assistant\n"
    assert begun["off"] == "#user\nto be\n#assistant\n"
    assert {bos: partner.begins for bos, partner in found.items()} == {
        "auto": "<|endoftext|>",
        "on": "<|endoftext|>",
        "off": "",
    }


def test_an_end_of_the_whole_text_behind_the_last_answer_changes_nothing_that_was_said():
    """As Phi-3's; gpt-oss's has it in the place of the answer's own end, which is another later."""
    tokenizer = tokenizers.byte_level()
    tokenizer.eos_token, plain = "<|endoftext|>", template_of(tokenizer)
    tokenizer.chat_template = CHATML.replace("{% endif %}", "{% else %}{{ eos_token }}{% endif %}")
    assert template_of(tokenizer) == plain and not plain.note
    end = "{% if loop.last and not add_generation_prompt %}{{ eos_token }}{% else %}<|im_end|>{% endif %}"
    tokenizer.chat_template = CHATML.replace("<|im_end|>", end)
    assert template_of(tokenizer).note


def test_a_template_that_opens_an_answer_unasked_changes_nothing_that_was_said():
    """As the first one of Llama 3, and GLM-Edge's."""
    for kind in ("byte_level", "gemma_like"):
        tokenizer = TALKERS[kind]()
        plain = template_of(tokenizer)
        tokenizer.chat_template = tokenizer.chat_template.replace("{% if add_generation_prompt %}", "{% if true %}")
        assert template_of(tokenizer) == plain and plain.open and not plain.note


OPENED = ("", "<think>\n", "<|channel>thought\n<channel|>", "<|START_THINKING|>", "<|START_THINKING|><|END_THINKING|>")


@pytest.mark.parametrize("opened", OPENED)
def test_thoughts_stay_where_a_template_takes_them_out(opened):
    tokenizer = tokenizers.byte_level()
    tokenizer.chat_template = THINKING.replace("OPENED", opened)
    found = template_of(tokenizer)
    assert found.note == "" and "thoughts" in found.caution and found.caution.endswith(".")
    assert found.head == "<|im_start|>user\n" and found.open == f"<|im_end|>\n<|im_start|>assistant\n{opened}"
    assert found.close == "<|im_end|>\n<|im_start|>user\n"
    talk = Conversation(Partner(model_of(tokenizer)), Streaming(4, 28), Sampling(max_new=6))
    talk.ask("to be")
    while talk.step() is not None:
        pass
    before = talk.tokens.tolist()
    kept = said(tokenizer, before)
    talk.ask("or not")
    # Nothing of what was said has changed, and what follows is the template's and the person's.
    assert talk.tokens.tolist()[: len(before)] == before
    end = "" if before[-1] == tokenizer.eos_token_id else "<|im_end|>"
    assert said(tokenizer, talk.tokens) == f"{kept}{end}\n<|im_start|>user\nor not{found.open}"


@pytest.mark.parametrize(
    ("opened", "begins"),
    [
        ("", "to=user#"),
        ("<think>", "</think>"),
        ("<think></think>", "</think>"),
        ("<|open|>thoughts#", "<|open|>thoughts#<|close|>thoughts#"),
    ],
)
def test_what_a_model_says_itself_before_its_answer_is_the_models_to_say(opened, begins):
    """As in channels of Solar, Functionary and Kimi; GLM-4.7 and DeepSeek V3.2 close a thought that nobody began."""
    tokenizer = tokenizers.byte_level()
    before = "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}BEGINS{% endif %}".replace("BEGINS", begins)
    tokenizer.chat_template = CHATML.replace("<|im_start|>{{ m.role }}\n", before).replace(
        "assistant\n", f"assistant\n{opened}"
    )
    found = template_of(tokenizer)
    assert not found.note and "what earlier answers begin with" in found.caution
    assert found.head == "<|im_start|>user\n" and found.close == "<|im_end|>\n<|im_start|>user\n"
    assert found.open == f"<|im_end|>\n<|im_start|>assistant\n{opened}"
    # An answer that begins with another role is none of this template's.
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ m.role }}", "old_{{ m.role }}")
    assert template_of(tokenizer).note


def test_a_template_that_keeps_all_has_nothing_to_say():
    for kind in ("byte_level", "gemma_like", "llama_like"):
        found = template_of(TALKERS[kind]())
        assert not found.note and not found.caution


def test_roles_hold_where_names_are_typed(partner):
    talk = first(partner, f"{TYPED} end")
    roles, pieces = talk.roles.view(), np.array(talk.pieces(), object)
    assert len(roles) == len(talk.tokens) and roles[-1] == TEMPLATE
    assert "".join(pieces[roles == USER]).strip() in f"{TYPED} end"
    assert "".join(pieces[roles == USER]).endswith("end")


PARTS = """<s>{% for m in messages %}{{ m.role | capitalize }}: {% for part in m.content %}{% if part.type == 'text' %}
{{- part.text }}{% endif %}{% endfor %}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"""
"""As SmolVLM's, which passes over a content that is one text."""


@pytest.mark.parametrize("condition", ["part.type == 'text'", "part.type + part.text"])
def test_a_template_that_knows_of_contents_in_parts_only_is_told_them_so(condition):
    """Whether it passes over a text, or fails with it."""
    tokenizer = tokenizers.gemma_like()
    tokenizer.chat_template = PARTS.replace("part.type == 'text'", condition)
    found = template_of(tokenizer)
    assert (found.head, found.open, found.close) == ("<s>User: ", "<end_of_turn>\nAssistant:", "<end_of_turn>\nUser: ")
    assert not found.note


def test_words_that_a_template_begins_answers_with_and_takes_out_later_stay():
    tokenizer = tokenizers.gemma_like()
    tokenizer.chat_template = """<s>{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.role == 'assistant' \
and not loop.last %}<end_of_turn>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>Here are my \
steps: {% endif %}"""
    found = template_of(tokenizer)
    assert (found.open, found.close) == ("<|assistant|>Here are my steps: ", "<end_of_turn><|user|>")
    assert not found.note and "changes what earlier answers begin with" in found.caution
