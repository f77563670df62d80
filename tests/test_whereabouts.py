"""Where a fact is: what heads give to its tokens is what transformers' eager attention says, and what is evicted gets
nothing."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from analysis.experiments.recall.asked import Asked
from analysis.experiments.recall.whereabouts import whereabouts
from analysis.models.loading import load
from analysis.runs.spec import Spec
from app.jobs.whereabouts import WhereaboutsJob
from app.panels.whereabouts import excerpt, sentence

from .test_jobs_recall import speaking  # noqa: F401
from .test_recall import POLICIES
from .tokenizers import byte_level
from .waiting import until

pytestmark = pytest.mark.whole

WINDOW = "window:window=64"
ASKED = Asked("passkey", (400,), (50.0,), 1, 0)


@pytest.fixture(scope="module")
def network(speaking):  # noqa: F811
    return load(speaking, device="cpu")


def cell(name: str, policy: str, asked: Asked = ASKED):
    (found,) = asked.cells(Spec(name, asked.task, (policy,), chunk=32, device="cpu"))
    return found


def looked(network, policy: str, **more):
    return whereabouts(network, cell(network.name, policy, replace(ASKED, **more)), network.tokenizer)


def test_under_dense_a_head_gives_to_the_fact_what_eager_attention_says(speaking, network):  # noqa: F811
    found = looked(network, "dense")
    begin, end = found.needle
    assert "The pass key is" in "".join(found.pieces[begin:end]) and found.content.endswith(("0", *"123456789"))
    with torch.inference_mode():
        eager = LlamaForCausalLM.from_pretrained(speaking, attn_implementation="eager")
        weights = eager(torch.tensor(found.ids[None, : found.asked.answer]).long(), output_attentions=True).attentions
    wanted = torch.stack(weights)[:, 0, :, -1, begin:end].sum(-1).numpy()
    (look,) = found.looks
    np.testing.assert_allclose(look.mass, wanted, atol=1e-5)
    assert (look.reached == 1).all() and look.holding == look.mass.size and (look.shares == 1).all()
    assert look.mass[look.ranked(1)[0]] == look.mass.max()


def test_what_has_left_the_window_gets_nothing_and_what_is_in_it_is_reached(network):
    gone = looked(network, WINDOW)
    dense, look = gone.looks
    assert (dense.policy, look.policy) == ("dense", WINDOW) and (dense.reached == 1).all()
    assert not look.mass.any() and not look.reached.any() and look.holding == 0
    # A token attends to its window and itself.
    assert look.shares.tolist() == [0] * (gone.asked.answer - 65) + [1] * 65
    assert "all of its" in sentence(gone) and "evicted in every head" in sentence(gone)
    near = looked(network, "window:window=390")
    np.testing.assert_allclose(near.looks[1].mass, near.looks[0].mass, atol=0.02)
    assert near.looks[1].holding == near.looks[0].holding


@pytest.mark.parametrize("full", [0, 1, 2])
def test_layers_with_windows_of_their_own_are_not_said_to_reach_the_fact(tmp_path, full):
    """Under dense nothing is evicted, and a layer that sees its newest 32 tokens does not see the fact all the same."""
    tokenizer = byte_level()
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    windows = {"use_sliding_window": True, "sliding_window": 32, "max_window_layers": full}
    config = Qwen2Config(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes, **windows)
    Qwen2ForCausalLM(config).eval().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    network = load(str(tmp_path), device="cpu")
    dense, kept, gone = (looked(network, policy) for policy in ("dense", "streaming:sinks=4,window=390", WINDOW))
    assert (dense.looks[0].reached.mean(1) == [layer < full for layer in range(2)]).all()
    assert ("every head can reach" in sentence(dense)) == (full == 2)
    assert full == 2 or f"{4 * full} of 8 heads can reach all of its" in sentence(dense)
    assert "evicted" not in sentence(kept) and ("evicted in every head" in sentence(gone)) == (full == 2)
    assert full or sentence(kept).count("no head can reach any of its") == 1


@pytest.mark.parametrize("policy", [p for p in POLICIES if p != "dense"] + ["adakv:budget=40,recent=8"])
def test_under_every_policy_a_head_gives_to_what_it_reaches_and_to_nothing_else(network, policy):
    look = looked(network, policy).looks[-1]
    assert look.policy != "dense" and 0 < look.shares.mean() < 1 and (look.shares[-8:] == 1).all()
    assert ((look.mass > 0) == (look.reached > 0)).all() and look.mass.max() <= 1 + 1e-5
    # Few tokens are cached of four hundred.
    assert look.shares.sum() < 120 or "duo" in policy


def test_what_is_kept_without_knowing_the_question_is_still_there_at_its_end(network):
    question = looked(network, "dense").asked
    window = f"window:window={question.answer - question.needle[1] + 2}"
    aware, blind = (looked(network, window, asking=how).looks[1] for how in ("aware", "blind"))
    # While the question is read on, its own tokens push the fact out.
    assert blind.reached.mean() > aware.reached.mean()


def test_the_excerpt_marks_the_fact_and_dims_what_nobody_reaches(network):
    found = looked(network, WINDOW)
    html = excerpt(found, found.looks[1])
    assert html.count("sk-needle sk-lost") == found.needle[1] - found.needle[0] and "tokens …" in html
    assert "sk-asked" in html and "sk-needle sk-lost" not in excerpt(found, found.looks[0])


def test_a_task_whose_text_says_nothing_of_the_answer_is_refused(network):
    asked = Asked("arc", (600,), (), 1, 0)
    with pytest.raises(ValueError, match="nothing in this text says the answer"):
        whereabouts(network, cell(network.name, "dense", asked), network.tokenizer)


def test_a_live_look_finds_the_same_and_its_text_is_known_by_its_hash(registry, speaking, network):  # noqa: F811
    job = registry.start(partial(WhereaboutsJob, cell(speaking, WINDOW)))
    until(job, lambda: not job.live)
    assert job.status == "finished", job.note
    wanted = looked(network, WINDOW)
    np.testing.assert_allclose(job.found.looks[0].mass, wanted.looks[0].mass, atol=1e-5)
    assert job.text.content == wanted.content and registry.text(job.text.sha256[:16]) is job.text
    assert registry.text("0" * 16) is None


def test_a_look_counts_what_it_reads(registry, speaking):  # noqa: F811
    for policy, readings in ((WINDOW, 2), ("dense", 1)):
        job = registry.start(partial(WhereaboutsJob, of := cell(speaking, policy)))
        until(job, lambda job=job: not job.live)
        # The answer and what had no room are not read.
        assert 0.8 * job.total < job.read <= job.total == readings * of.size


def test_a_look_is_stopped_while_it_reads(registry, speaking):  # noqa: F811
    long = replace(ASKED, lengths=(60_000,))
    job = registry.start(partial(WhereaboutsJob, cell(speaking, WINDOW, long)))
    until(job, lambda: job.read > 0)
    job.request("stopped")
    until(job, lambda: not job.live)
    assert job.status == "stopped" and job.found is None
