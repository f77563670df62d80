"""What a person reads of a verdict: its sentence, its tables and what stands below them."""

import csv
import io

import msgspec
import pytest

from analysis.experiments.verdict import entries, sentence, table, tables

from .verdicts import VERDICT, entry

change = msgspec.structs.replace


def test_the_sentence_names_the_smallest_cache_that_is_close_and_what_it_forgets():
    assert sentence(VERDICT) == (
        "The smallest cache within 2 % of dense on Hamlet and Macbeth is Sinks + window at 128 tokens (perplexity "
        "+1.0 ± 0.1 %); at 128 tokens it forgets everything older than 40 tokens (passkey: 0 of 1 recalled)."
    )
    far = [e if e.budget is None else msgspec.structs.replace(e, excess=1.0 + e.budget) for e in VERDICT.entries]
    said = sentence(msgspec.structs.replace(VERDICT, entries=far))
    assert said.startswith("No cache of up to 128 tokens comes within 2 % of dense on Hamlet and Macbeth: nearest is ")
    same = [msgspec.structs.replace(e, excess=-1e-9) for e in VERDICT.entries]
    assert "(perplexity +0.0 ± 0.1 %)" in sentence(msgspec.structs.replace(VERDICT, entries=same))
    header, rows = table(msgspec.structs.replace(VERDICT, entries=same))
    assert {row[header.index("Excess NLL")] for row in rows[1:]} == {"+0.0000 ± 0.0010"}
    whole = msgspec.structs.replace(VERDICT, entries=[VERDICT.entries[0], entry("random", 64, 0.0, 2, (2, 2))])
    assert sentence(whole).endswith("it forgets nothing of what was asked that is older than its cache is large "
                                    "(passkey: 2 of 2 recalled).")  # fmt: skip
    part = msgspec.structs.replace(VERDICT, entries=[VERDICT.entries[0], entry("random", 64, 0.0, 1, (2, 1))])
    assert sentence(part).endswith("it forgets some of what is older than its cache is large (passkey: 1 of 2 "
                                   "recalled).")  # fmt: skip


@pytest.mark.parametrize(("excess", "p", "told"), [(0.015, 0.2, True), (0.015, 0.04, False), (0.03, 0.2, False)])
def test_of_one_budget_all_are_named_that_are_close_and_that_no_test_tells_apart(excess, p, told):
    both = [entry("window:window=64", 64, excess, 0), entry("streaming:sinks=4,window=60", 64, 0.005, 0)]
    pair = msgspec.structs.replace(VERDICT.pairs[0], one=both[0].policy, other=both[1].policy, p=p)
    found = msgspec.structs.replace(VERDICT, entries=[VERDICT.entries[0], *both], pairs=[pair])
    assert ("(perplexity +0.5 ± 0.1 %), and no test tells it from Window" in sentence(found)) is told
    far = msgspec.structs.replace(found, entries=[VERDICT.entries[0], *[change(e, excess=1.0) for e in both]])
    assert ("(perplexity +171.8 ± 0.3 %), and no test tells it from Sinks + window" in sentence(far)) is (p > 0.05)


def test_of_recall_all_are_named_that_no_test_tells_from_the_one_that_recalls_most():
    both = [change(e, excess=None, tokens=0) for e in VERDICT.entries if e.budget == 128]
    found = change(VERDICT, entries=[change(VERDICT.entries[0], excess=None, tokens=0), *both], texts=[])
    assert "by Window at 128 tokens: 1 of 2, and no test tells it from Sinks + window; at 128" in sentence(found)
    apart = change(VERDICT.pairs[2], p=0.01)
    assert "no test" not in sentence(change(found, pairs=[apart]))


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        (None, "(p ≥ 0.05). Of"),
        (1, "(p ≥ 0.05); 1 block of 256 tokens is too little for a test. Of"),
        (2, "(p ≥ 0.05); 2 blocks of 256 tokens are tested, which tell little apart. Of"),
        (16, "(p ≥ 0.05); 16 blocks of 256 tokens are tested. Of"),
    ],
)
def test_a_caption_says_how_much_was_tested(blocks, said):
    assert said in tables.caption(change(VERDICT, blocks=blocks))


def test_a_caption_says_what_the_columns_are_that_stand_there():
    units, of_recall = "Excess NLL and KL: nats/token. ms/token:", "Of recall: facts that dense recalls"
    assert units in tables.caption(VERDICT) and of_recall in tables.caption(VERDICT)
    assert units not in tables.caption(change(VERDICT, texts=[]))
    alone = change(VERDICT, entries=[change(e, recall={}) for e in VERDICT.entries])
    assert units in tables.caption(alone) and of_recall not in tables.caption(alone)


def test_a_table_of_its_own_says_which_model_read_how_much_of_which_texts():
    found = change(VERDICT, model="/home/me/my-llama", texts=["/home/me/my novel.txt", "hamlet"])
    written = tables.written(found)["table.md"]
    assert "\n\nmy-llama on my novel.txt and Hamlet (1,002 tokens).\n\n" in written and "/home" not in written
    unread = change(found, texts=[], entries=[change(e, tokens=0, excess=None) for e in found.entries])
    assert "\n\nmy-llama.\n\n" in tables.written(unread)["table.md"]


@pytest.mark.parametrize("order", [1, -1])
def test_of_one_budget_the_better_is_named_with_its_error_in_per_cent_of_dense(order):
    both = [entry("window:window=64", 64, 0.015, 0), entry("streaming:sinks=4,window=60", 64, 0.005, 0)][::order]
    found = msgspec.structs.replace(VERDICT, entries=[VERDICT.entries[0], *both], pairs=[])
    assert "is Sinks + window at 64 tokens (perplexity +0.5 ± 0.1 %)" in sentence(found)
    # A thousandth of a nat is a thousandth of the policy's own perplexity, which is e times that of dense.
    far = msgspec.structs.replace(found, entries=[VERDICT.entries[0], entry("window:window=64", 64, 1.0, 0)])
    assert "nearest is Window at 64 tokens (perplexity +171.8 ± 0.3 %)" in sentence(far)


def test_most_is_recalled_by_who_recalls_most_of_all_tasks():
    def asked(policy: str, *tasks: tuple[int, int]) -> entries.Entry:
        recall = {f"task{i}": entries.Recall(of, hits, 0.0, 1.0, 0, 0, None) for i, (hits, of) in enumerate(tasks)}
        return entries.Entry(policy, 64, 0, *[None] * 8, recall)

    both = [asked("window:window=64", (0, 10), (5, 5)), asked("streaming:sinks=4,window=60", (9, 10), (4, 5))]
    found = entries.Verdict("tiny", [], [VERDICT.entries[0], *both], [])
    assert sentence(found) == "Most is recalled by Sinks + window at 64 tokens: 13 of 15."


def test_a_verdict_that_has_just_begun_says_so():
    unread = [entries.Entry(e.policy, e.budget, 0, *[None] * 8, {}) for e in VERDICT.entries]
    begun = msgspec.structs.replace(VERDICT, entries=[VERDICT.entries[0], *unread[1:]])
    assert sentence(begun) == "No policy but dense has been measured yet."
    # Nobody was asked yet, or dense alone.
    for entries_so_far in (unread, [VERDICT.entries[0], *unread[1:]]):
        asked = msgspec.structs.replace(VERDICT, entries=entries_so_far, texts=[])
        assert sentence(asked) == "No policy but dense has been measured yet."


def test_what_no_test_tells_from_the_best_of_its_budget_is_marked():
    header, rows = table(VERDICT)
    at = header.index("÷ dense")
    assert [row[at].endswith("≈") for row in rows] == [False, False, True, True, True]
    assert [row[:2] for row in rows] == [
        ["Dense", "–"], ["Window", "64"], ["Window", "128"], ["Sinks + window", "64"], ["Sinks + window", "128"],
    ]  # fmt: skip
    narrow, _ = table(VERDICT, narrow=True)
    assert set(header) - set(narrow) == {"Perplexity", "Excess NLL"}


def test_numbers_of_the_table_are_no_dates_to_a_spreadsheet_nor_fractions_to_other_countries():
    large = msgspec.structs.replace(VERDICT.entries[1], policy="window:window=2048", budget=2048)
    written = tables.written(msgspec.structs.replace(VERDICT, entries=[VERDICT.entries[0], large]))["table.csv"]
    header, dense, window = csv.reader(io.StringIO(written, newline=""))
    assert (header[:2], header[-1]) == (["Policy", "Budget"], "passkey")
    assert (dense[:2], dense[-1]) == (["Dense", "–"], "2 of 2")
    assert (window[:2], window[-1].removesuffix(" ≈")) == (["Window", "2048"], "0 of 2")


def test_a_policy_is_named_with_what_was_changed_about_it():
    plain, changed = "streaming:sinks=4,window=60", "streaming:sinks=4,window=60,cache=int4,exact=4"
    found = msgspec.structs.replace(VERDICT, entries=[entry(p, 64, 0.5, 0) for p in (plain, changed)])
    assert [row[0] for row in table(found)[1]] == ["Sinks + window", "Sinks + window, int4 cache, first 4 exact"]
    alone = msgspec.structs.replace(found, entries=found.entries[1:])
    assert [row[0] for row in table(alone)[1]] == ["Sinks + window, int4 cache, first 4 exact"]
