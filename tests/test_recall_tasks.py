"""Texts of recall tasks: what is asked for stands where it should, and a seed says all of it."""

import codecs
import json
import re
import subprocess
import sys
from collections import Counter

import pytest

from analysis.experiments.recall import TASKS, parse
from analysis.experiments.recall.base import Place
from analysis.experiments.recall.encoding import Tokens

from .tokenizers import byte_level, gemma_like

TOKENS = Tokens(byte_level())
LENGTH = 1200
"""The tiny tokenizer has a token for nearly every letter."""
MADE = [name for name in TASKS if name != "jsonl"]
PLACED = [name for name in MADE if TASKS[name].placed]


def place_of(task, depth=50.0, repeat=0, length=LENGTH):
    return Place(length, depth if task.placed else None, repeat)


def small(name):
    return parse(f"{name}:back=3,every=2" if name == "streameval" else name)


def text_of(sample):
    return "".join(e.before + e.question + e.answer for e in sample.exchanges)


@pytest.mark.parametrize("name", MADE)
def test_a_text_is_as_long_as_was_asked_and_not_longer(name):
    task = small(name)
    encoded = TOKENS.encode(task.sample(place_of(task), 0, TOKENS))
    assert LENGTH * 0.8 < len(encoded.ids) <= LENGTH


@pytest.mark.parametrize("name", MADE)
def test_answers_and_what_says_them_are_found_in_the_tokens(name):
    task, decode = small(name), TOKENS.tokenizer.decode
    sample = task.sample(place_of(task), 0, TOKENS)
    encoded = TOKENS.encode(sample)
    for exchange, asked in zip(sample.exchanges, encoded.asked, strict=True):
        assert decode(encoded.ids[asked.answer : asked.stop]) == exchange.answer
        assert decode(encoded.ids[asked.question : asked.answer]) == exchange.question
        if asked.needle is not None:
            said = decode(encoded.ids[slice(*asked.needle)])
            assert exchange.answer.strip() in said and not said[-1].isspace()
            assert asked.needle[1] <= asked.question


@pytest.mark.parametrize("name", PLACED)
@pytest.mark.parametrize("depth", [0.0, 5.0, 50.0, 95.0, 100.0])
def test_the_fact_stands_where_it_should_in_percent_of_the_room(name, depth):
    task = small(name)
    sample = task.sample(place_of(task, depth), 0, TOKENS)
    (begin, end), (exchange,) = sample.exchanges[0].needle, sample.exchanges
    first = task.sample(place_of(task, 0.0), 0, TOKENS).exchanges[0].needle[0]
    last = task.sample(place_of(task, 100.0), 0, TOKENS).exchanges[0].needle[0]
    if name == "multikey":
        # Other keys are scattered through the room; here only its ends are known.
        assert first <= begin <= last and exchange.answer.strip() in exchange.before[begin:end]
        return
    # A line of a play has some hundred letters at most.
    assert abs((begin - first) - depth / 100 * (last - first)) <= 60


@pytest.mark.parametrize("name", MADE)
def test_the_same_seed_makes_the_same_text_and_another_seed_another(name):
    task = small(name)
    same, again = (text_of(task.sample(place_of(task), 7, TOKENS)) for _ in range(2))
    assert same == again != text_of(task.sample(place_of(task), 8, TOKENS))
    assert same != text_of(task.sample(place_of(task, repeat=1), 7, TOKENS))


def test_the_same_seed_makes_the_same_text_in_another_process():
    program = (
        "from analysis.experiments.recall import parse; from analysis.experiments.recall.base import Place; "
        "print(parse('passkey').dice(Place(512, 5.0, 3), 11).random())"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert float(said) == parse("passkey").dice(Place(512, 5.0, 3), 11).random() == 0.3393470722237568


def test_keys_are_uniform_between_their_bounds():
    task = parse("passkey")
    keys = [int(task.sample(Place(300, 0.0, i), 0, TOKENS).exchanges[0].answer) for i in range(400)]
    assert all(10_000 <= key <= 50_000 for key in keys)
    tens = Counter(key // 10_000 for key in keys)
    # Each of four has a quarter of 400, give or take four standard deviations.
    assert all(65 <= tens[n] <= 135 for n in (1, 2, 3, 4)), tens


def test_depths_of_one_repeat_hide_their_facts_in_the_same_lines():
    task = parse("passkey:haystack=hamlet")
    early, late = (task.sample(place_of(task, depth), 0, TOKENS).exchanges[0] for depth in (0.0, 100.0))
    (a, b), (c, _) = early.needle, late.needle
    assert early.before[b:].strip() == late.before[a:c].strip()


@pytest.mark.parametrize("back", [2, 5])
def test_streameval_asks_for_the_value_so_many_lines_back(back):
    task = parse(f"streameval:back={back},every=3,digits=4")
    lines, asked = {}, []
    for exchange in task.sample(place_of(task, length=2000), 0, TOKENS).exchanges:
        for line in exchange.before.strip().split("\n"):
            if line.startswith("The REGISTER_CONTENT"):
                words = line.split()
                lines[int(words[4])] = words[6]
        number = int(exchange.question.split()[5])
        assert number == max(lines) - back and exchange.answer == f" {lines[number]}"
        assert 3 <= len(lines[number].strip("<>")) <= 4
        asked.append(max(lines))
    assert asked == list(range(back, max(asked) + 1, 3)) and len(asked) > 2


@pytest.mark.parametrize("name", MADE)
def test_a_text_that_is_too_short_says_so_in_one_sentence(name):
    task = small(name)
    with pytest.raises(ValueError, match="choose a larger length") as wrong:
        task.sample(place_of(task, length=12), 0, TOKENS)
    assert "\n" not in str(wrong.value)


@pytest.mark.parametrize("name", PLACED)
def test_a_text_without_room_for_its_fact_is_refused_and_never_longer(name):
    task = small(name)
    with pytest.raises(ValueError, match="the fact and the question need") as wrong:
        task.sample(place_of(task, length=12), 0, TOKENS)
    needed, taken = int(re.findall(r"need (\d+) tokens", str(wrong.value))[0]), []
    for length in range(needed - 9, needed + 9):
        try:
            sample = task.sample(place_of(task, length=length), 0, TOKENS)
        except ValueError:
            continue
        taken.append(length)
        assert len(TOKENS.encode(sample).ids) <= length
    assert 0 < len(taken) < 18


def test_a_bos_comes_first_and_counts():
    tokens = Tokens(gemma_like())
    task = parse("passkey")
    encoded = tokens.encode(task.sample(place_of(task), 0, tokens))
    assert encoded.ids[0] == tokens.tokenizer.bos_token_id and len(encoded.ids) <= LENGTH
    (asked,) = encoded.asked
    answer = tokens.tokenizer.decode(encoded.ids[asked.answer : asked.stop])
    assert answer.strip() == task.sample(place_of(task), 0, tokens).exchanges[0].answer.strip()


def own(tmp_path, *lines):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return parse(f"jsonl:file={path}")


def test_a_file_of_ones_own_is_read_line_by_line(tmp_path):
    cat = {"context": "The cat is grey. The dog is not.", "question": "Which is grey?", "answer": "cat"}
    task = own(tmp_path, cat, "\n", {**cat, "answer": "bird"})
    places = list(task.places([256], [5, 50], 9))
    assert places == [Place(0, None, 0), Place(0, None, 1)]
    # As some editors write it: with a byte order mark.
    path = tmp_path / "own.jsonl"
    path.write_bytes(codecs.BOM_UTF8 + path.read_bytes())
    assert list(task.places([], [], 1)) == places
    first, second = (task.sample(place, 0, TOKENS).exchanges[0] for place in places)
    assert text_of(task.sample(places[0], 0, TOKENS)) == f"{cat['context']}\nWhich is grey? cat"
    assert first.before[slice(*first.needle)] == "cat" and second.needle is None


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("nothing", "line 2 of .* is no question"),
        ('{"context": "a", "question": "b"}', "line 2 of .*answer"),
        ('{"context": "a", "question": "b", "answer": 3}', "line 2 of .*answer"),
        ('{"context": "a", "question": "b", "answer": "c", "depth": 5}', "line 2 of .*depth"),
        ('{"context": "a", "question": "b", "answer": " "}', "line 2 of .* has an empty answer"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_sentence_with_the_line(tmp_path, line, says):
    task = own(tmp_path, {"context": "a", "question": "b", "answer": "c"}, line)
    with pytest.raises(ValueError, match=says) as wrong:
        list(task.places([], [], 1))
    assert "\n" not in str(wrong.value)


def test_a_file_that_is_empty_or_not_named_says_so(tmp_path):
    path = tmp_path / "wide.jsonl"
    path.write_text("{}", encoding="utf-16")
    with pytest.raises(ValueError, match=r"is UTF-16 and not UTF-8 .* save it as UTF-8"):
        list(parse(f"jsonl:file={path}").places([], [], 1))
    with pytest.raises(ValueError, match="has no lines"):
        list(own(tmp_path, "\n").places([], [], 1))
    with pytest.raises(ValueError, match="jsonl:file=PATH"):
        list(parse("jsonl").places([], [], 1))
