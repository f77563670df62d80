"""A conversation is one token stream: what was generated stays, and only what stands between answers is read."""

import copy
import json

import numpy as np
import pytest
import torch

from analysis.chat import conversation as chat
from analysis.chat.conversation import Conversation, join
from analysis.chat.partner import ASSISTANT, TEMPLATE, USER, Partner
from analysis.chat.sampling import Chooser
from analysis.chat.scripts import read_script, script_from_bytes, scripts
from analysis.chat.template import template_of
from analysis.policies import Dense, Recompute, Streaming, Window
from analysis.runs.spec import Sampling

from .naive import OneByOne


@pytest.fixture(scope="module")
def partner(embedded_packed):
    """The embedded model with packed weights: what is tested with it is true of any model, and comes sooner."""
    return Partner(embedded_packed)


@pytest.fixture(scope="module")
def exact(embedded):
    """The embedded model in float32, for what is compared number by number: packed weights multiply in bfloat16, and
    round otherwise whenever rows go together in another way."""
    return Partner(embedded)


CLOSE = 5e-3
"""Logits so near each other that rounding may decide between them.  In float32 the order of sums, which chunks, threads
and instruction sets change, moves a logit of the embedded model by less than a tenth of it."""


class Watched(Chooser):
    """Chooses, and notes how far off another choice was at each position of the text."""

    def __init__(self, sampling):
        super().__init__(sampling)
        self.margins = {}

    def __call__(self, tokens, logits):
        scores = self.scores(tokens, logits)
        if self.sampling.temperature == 0:
            best, second = scores.topk(2).values.tolist()
            self.margins[len(tokens)] = best - second
        else:
            draw = torch.rand(1, generator=self.random.clone_state(), dtype=torch.float64)
            p = torch.softmax(scores.double(), -1).sort(descending=True).values
            steps = p.cumsum(-1)
            at = int(torch.searchsorted(steps, draw))
            # Neighbours that are as probable could change places.
            gaps = [float(1 - p[max(i, j)] / p[min(i, j)]) for i, j in ((at, at - 1), (at, at + 1)) if j >= 0]
            self.margins[len(tokens)] = min(float((steps - draw).abs().min()), *gaps)
        return super().__call__(tokens, logits)


def watched(partner, policy, sampling, **more):
    talk = Conversation(partner, policy, sampling, **more)
    talk.chooser = Watched(sampling)
    return talk


def same_until_a_tie(*talks, least, close=CLOSE):
    """The number of tokens, at least `least`, up to which no choice was close; they are the same in all."""
    texts = [talk.tokens.tolist() for talk in talks]
    count = min(map(len, texts))
    for i in range(count):
        if min(talk.chooser.margins.get(i, np.inf) for talk in talks) < close:
            count = i
            break
        assert len({text[i] for text in texts}) == 1, i
    assert count >= least
    return count


def answer(conversation, prompt, chunk=chat.CHUNK):
    """The steps of one prompt and its answer."""
    conversation.ask(prompt)
    steps = []
    while (step := conversation.step(chunk)) is not None:
        steps.append(step)
    return steps


def test_tokens_equal_the_whole_template_rendered_at_once(partner):
    talk = Conversation(partner, Streaming(4, 60), Sampling(max_new=40))
    said = []
    for prompt in ("What is the capital of France?", "  What is the opposite of hot?\n"):
        answer(talk, prompt)
        assert talk.turns[-1].why == "ended"
        said += [{"role": "user", "content": prompt.strip()}]
        said += [{"role": "assistant", "content": talk.said(talk.turns[-1])}]
    whole = partner.tokenizer.apply_chat_template(said, tokenize=False)
    ids = partner.tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert ids[: len(talk.tokens)] == talk.tokens.tolist()
    assert "".join(talk.pieces()) == whole.rstrip("\n")
    # Who said what: the prompt's words are the person's, the answer's end is the model's own.
    roles = talk.roles.view()
    assert partner.tokenizer.decode(talk.tokens[roles == USER]) == "".join(s["content"] for s in said[::2])
    assert (roles[talk.turns[0].begin : talk.turns[0].stop] == ASSISTANT).all()
    assert roles[0] == TEMPLATE and len(roles) == len(talk.tokens)


def test_answer_cut_at_the_limit_is_closed_as_the_template_closes_it(partner):
    talk = Conversation(partner, Dense(), Sampling(max_new=3))
    answer(talk, "Write a long story about the sea.")
    turn = talk.turns[-1]
    assert turn.why == "limit" and turn.stop - turn.begin == 3
    cut = talk.said(turn)
    talk.ask("Go on.")
    text = "".join(talk.pieces())
    assert text.endswith(f"{cut}<|im_end|>\n<|im_start|>user\nGo on.<|im_end|>\n<|im_start|>assistant\n")


def test_special_tokens_that_are_typed_are_text(partner):
    talk = Conversation(partner, Dense(), Sampling(max_new=1))
    talk.ask("Say <|im_end|> and <|im_start|>system")
    typed = talk.tokens[talk.roles.view() == USER]
    special = {partner.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|im_start|>")}
    assert not special & set(typed.tolist())
    assert partner.tokenizer.decode(typed) == "Say <|im_end|> and <|im_start|>system"
    assert talk.tokens[0] in special


@pytest.mark.parametrize("prompt", ["\x00\x07\x1b[31m", "naïve 🐈 \u202e", "a\r\nb\rc", "\ud800 alone"])
def test_any_characters_can_be_said(partner, prompt):
    talk = Conversation(partner, Dense(), Sampling(max_new=2))
    answer(talk, prompt)
    assert talk.turns[-1].why and "\r" not in "".join(talk.pieces())


@pytest.mark.parametrize("prompt", ["", "  \n\t "])
def test_empty_prompt_is_refused_and_changes_nothing(partner, prompt):
    talk = Conversation(partner, Dense(), Sampling())
    with pytest.raises(ValueError, match="prompt is empty"):
        talk.ask(prompt)
    assert not talk.turns and not len(talk.tokens) and talk.step() is None


def test_second_prompt_waits_for_the_answer(partner):
    talk = Conversation(partner, Dense(), Sampling())
    talk.ask("Hello")
    with pytest.raises(ValueError, match="not finished"):
        talk.ask("Hello again")


def test_prompt_beyond_free_memory_is_refused_for_dense_only(partner, monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr(chat.psutil, "virtual_memory", lambda: SimpleNamespace(available=10_000_000))
    with pytest.raises(ValueError, match=r"keeps everything.*GB"):
        Conversation(partner, Dense(), Sampling()).ask("word " * 5000)
    Conversation(partner, Window(64), Sampling()).ask("word " * 5000)


def _with_template(partner, template):
    tokenizer = copy.copy(partner.tokenizer)
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "no chat template"),
        ("{{ raise_exception('no') }}", "cannot be used (it refuses a conversation of prompts and answers alone):"),
        ("{% for %}", "cannot be used (it is not well-formed):"),
        ("{{ 'a' | mystery }}", "cannot be used (it uses what chat templates do not have):"),
        ("{{ tools.of.mine }}", "cannot be used (it asks for what a conversation does not have):"),
        ("{{ tools | length }}", "cannot be used (it fails as it is rendered):"),
        ({"rag": "a", "tool_use": "b"}, "cannot be used (it has several, and none of them is the default):"),
        (["a"], "cannot be used (it is not one):"),
        ("{% for m in messages %}{{ m.content[3:] }}{% endfor %}", "changes what was said"),
        # The last answer looks other than earlier ones.
        (
            "{% for m in messages %}<{{ m.role }}>{% if loop.last and m.role == 'assistant' %}!{% endif %}"
            "{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}",
            "changes what was said",
        ),
        ("{{ messages[-1].content }}", "changes what was said"),
    ],
)
def test_template_that_cannot_be_rendered_bit_by_bit_is_noticed(partner, template, words):
    found = template_of(_with_template(partner, template))
    assert words in found.note and found.note.endswith(".")
    assert (found.head, found.open) == ("", "")


def test_other_templates_are_taken_apart(partner):
    mistral = (
        "{{ '<s>' }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
        "{% else %} {{ m.content | trim }}</s>{% endif %}{% endfor %}"
    )
    found = template_of(_with_template(partner, mistral))
    assert (found.head, found.open, found.close, found.note) == ("<s>[INST] ", " [/INST]", "</s>[INST] ", "")


def test_without_a_template_text_is_continued(partner):
    plain = copy.copy(partner)
    plain.template = template_of(_with_template(partner, None))
    talk = Conversation(plain, Dense(), Sampling(max_new=4))
    answer(talk, "Once upon a time")
    answer(talk, "and then")
    text = "".join(talk.pieces())
    assert text.startswith("Once upon a time") and "\nand then" in text and "<|im_start|>" not in text


def test_same_seed_same_answers_whatever_the_chunks(exact):
    def said(chunk, seed=7):
        talk = watched(exact, Streaming(4, 28), Sampling(max_new=8, temperature=1.2, top_p=0.95, seed=seed))
        answer(talk, "Tell me something about the sea and the ships on it, please.", chunk)
        return talk

    talks = [said(256), said(7), said(1)]
    asked = talks[0].turns[0].begin
    same_until_a_tie(*talks, least=asked + 4, close=5e-4)
    assert talks[0].tokens.tolist() != said(256, seed=8).tokens.tolist()


def test_choosing_follows_the_settings():
    logits = torch.tensor([0.0, 3.0, 2.9, -5.0])
    tokens = torch.tensor([1])
    assert Chooser(Sampling())(tokens, logits) == 1
    assert Chooser(Sampling(repetition_penalty=2.0))(tokens, logits) == 2
    assert {Chooser(Sampling(temperature=5.0, top_k=1, seed=s))(tokens, logits) for s in range(20)} == {1}
    assert {Chooser(Sampling(temperature=5.0, top_p=0.5, seed=s))(tokens, logits) for s in range(40)} == {1, 2}
    chooser = Chooser(Sampling(temperature=1.0, seed=3))
    drawn = np.bincount([chooser(tokens, logits) for _ in range(2000)], minlength=4) / 2000
    np.testing.assert_allclose(drawn, torch.softmax(logits, -1), atol=0.04)


def test_the_least_temperature_leaves_the_most_probable_token_alone():
    logits, tokens = torch.tensor([1.0, 30.0, 29.0]), torch.tensor([0])
    for temperature in (0.01, 1e-20, 1e-39, 5e-324):
        assert Chooser(Sampling(temperature=temperature))(tokens, logits) == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_new": 0}, "max_new"),
        ({"temperature": -1}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed must be from 0 to 9,223,372,036,854,775,807, not 9223372036854775808"),
    ],
)
def test_sampling_out_of_range_is_named(settings, words):
    with pytest.raises(ValueError, match=words):
        Sampling(**settings)


@pytest.mark.parametrize("policy", [Dense(), Streaming(4, 28), Window(32), Recompute(24, 4)])
def test_answer_given_again_leaves_no_trace(exact, policy):
    once, twice = (watched(exact, policy, Sampling(max_new=10), history=64) for _ in range(2))
    for talk in (once, twice):
        answer(talk, "What is the capital of France?")
        answer(talk, "And of Italy?")
    for _ in range(2):
        twice.again()
        while twice.step() is not None:
            pass
    a, b = (join(answer(talk, "And of Spain?")) for talk in (once, twice))
    # All but the last words of the last answer, at least.
    count = same_until_a_tie(once, twice, least=once.turns[-1].begin)
    assert twice.pieces()[: count - 1] == once.pieces()[: count - 1]
    np.testing.assert_allclose(b.nll[: count - b.start], a.nll[: count - a.start], atol=1e-3)
    assert twice.roles.view()[:count].tolist() == once.roles.view()[:count].tolist()


def test_nothing_can_be_given_again_before_an_answer(partner):
    talk = Conversation(partner, Dense(), Sampling())
    with pytest.raises(ValueError, match="no finished answer"):
        talk.again()


def test_stopped_in_the_middle_nothing_that_was_said_is_lost(partner):
    talk = Conversation(partner, Dense(), Sampling(max_new=50))
    talk.ask("Write a long story about the sea.")
    for _ in range(5):
        talk.step()
    talk.stop()
    cut = talk.said(talk.turns[0])
    assert talk.turns[0].why == "stopped" and not talk.busy and cut
    # Stopped while the prompt is still being read: the rest is read with the next one.
    talk.ask("word " * 50)
    talk.step(chunk=8)
    talk.stop()
    assert talk.unread
    answer(talk, "What is the capital of France?")
    text = "".join(talk.pieces())
    assert cut in text and "word " * 49 in text and talk.unread == 0 and talk.turns[-1].why


def test_prompt_longer_than_the_cache_equals_one_token_at_a_time(exact):
    talks = [watched(exact, Streaming(4, 12), Sampling(max_new=2)) for _ in range(2)]
    a, b = (
        join(answer(talk, "The quick brown fox jumps over the lazy dog, " * 2, chunk))
        for talk, chunk in zip(talks, (256, 1), strict=True)
    )
    count = same_until_a_tie(*talks, least=talks[0].turns[0].begin)
    np.testing.assert_allclose(b.nll[: count - 1], a.nll[: count - 1], atol=1e-3)


@pytest.mark.parametrize(("policy", "sinks", "window"), [(Streaming(4, 60), 4, 60), (Window(64), 0, 64)])
def test_answers_equal_those_of_a_plain_list_of_kept_keys(embedded, exact, policy, sinks, window):
    # The whole script takes minutes this way: make bench does it.
    talk = Conversation(exact, policy, Sampling(max_new=12))
    talk.trace()
    prompts, _ = read_script("questions")
    for prompt in prompts[:3]:
        answer(talk, prompt)
    naive, given = OneByOne(embedded.network, sinks, window), talk.tokens
    said = np.flatnonzero(talk.roles.view() == ASSISTANT)
    assert len(given) > 80 and len(said) > 18
    for i, token in enumerate(given[:-1]):
        logits = naive.logits(int(token))
        if i + 1 in said:
            assert logits.max() - logits.flatten()[given[i + 1]] < CLOSE


def test_all_answer_the_same_until_the_first_eviction(exact):
    talks = [watched(exact, p, Sampling(max_new=60)) for p in (Dense(), Window(64), Streaming(4, 60))]
    for talk in talks:
        talk.trace()
        answer(talk, "Tell me a long story about a ship.")
        # A query meets the cached tokens and itself: the first that lacks one predicts the token two positions on.
        talk.lane.context.truncate(66)
    same_until_a_tie(*talks, least=60)


def test_what_is_kept_is_the_sinks_and_the_newest(partner):
    talk = Conversation(partner, Streaming(4, 28), Sampling(max_new=8))
    answer(talk, "What is the capital of France?")
    sinks, first = talk.kept
    assert sinks == 4 and first == len(talk.tokens) - 1 - 28


@pytest.mark.parametrize(
    ("name", "data", "prompts"),
    [
        ("a.txt", "Hello\n\n  How are you?  \n", ["Hello", "How are you?"]),
        ("a.jsonl", '{"turns": ["One", "Two"], "id": 3}\n{"turns": ["Three"]}', ["One", "Two", "Three"]),
        ("unnamed", '{"turns": ["One"]}', ["One"]),
    ],
)
def test_scripts_are_lines_or_turns(name, data, prompts):
    assert script_from_bytes(data.encode(), name)[0] == prompts


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.txt", b"", "empty"),
        ("a.txt", b"\x89PNG\x00\x01", "binary"),
        ("a.jsonl", b"hello", "line 1 of a.jsonl is not JSON"),
        ("a.jsonl", b'{"turns": ["ok"]}\n{"turn": []}', "line 2 of a.jsonl"),
        ("a.jsonl", b'{"turns": "text"}', "list of prompts"),
        ("a.jsonl", b'{"turns": [""]}', "none of them empty"),
        ("a.jsonl", json.dumps({"turns": []}).encode(), "no prompts"),
    ],
)
def test_script_that_is_none_gets_a_sentence(name, data, words):
    with pytest.raises(ValueError, match=words):
        script_from_bytes(data, name)


def test_bundled_scripts_are_there():
    assert {"questions", "memory"} <= set(scripts())
    assert len(read_script("questions")[0]) == 11
    with pytest.raises(ValueError, match="no script"):
        read_script("nothing")
