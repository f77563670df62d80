"""Laws of what begins a text: BOS as the tokenizer puts it, asked for or not, never twice; and names of control tokens
that stand in a text are text."""

import functools
import io
import json

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from analysis import texts
from analysis.engine.context import SharedContext
from analysis.engine.head_scores import measured_scores
from analysis.engine.stream import open_lanes
from analysis.experiments.ablation import knock_out_each
from analysis.experiments.measures import samples_of, samples_of_text
from analysis.maps.atlas import map_of
from analysis.models.language_model import LanguageModel
from analysis.models.loading import load
from analysis.policies import parse
from analysis.runs.reader import load as load_run
from analysis.runs.spec import Spec
from analysis.texts.control import control_tokens

from . import tokenizers
from .tokenizers import KINDS

WRITTEN = "to be <s> or <think>not</think> <|im_end|>x<s>y <bos>\n\n\n the <start_of_turn>text<eop>[END] is</s>"


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return KINDS[request.param]()


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """The folder of a tiny model whose tokenizer puts BOS first."""
    folder = tmp_path_factory.mktemp("gemma")
    tiny().save_pretrained(folder)
    tokenizers.gemma_like().save_pretrained(folder)
    return str(folder)


def tiny(vocabulary: int = 400) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 512}
    config = LlamaConfig(vocab_size=vocabulary, num_attention_heads=4, num_key_value_heads=2, **sizes)
    network = LlamaForCausalLM(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter.mul_(3)
    return network


def written(content: str, name: str = "a.txt") -> texts.Text:
    return texts.from_bytes(content.encode(), name)


def numbered(ids) -> texts.Text:
    file = io.BytesIO()
    np.save(file, np.asarray(ids))
    return texts.from_bytes(file.getvalue(), "ids.npy")


def said(tokenizer, ids) -> str:
    return "".join(texts.token_texts(tokenizer, np.asarray(ids)))


def test_a_text_begins_as_the_tokenizer_begins_it(tokenizer):
    content = "to be or not to be"
    whole, bare = tokenizer(content)["input_ids"], tokenizer(content, add_special_tokens=False)["input_ids"]
    ids = texts.tokenize(written(content), tokenizer)
    # Nothing is put behind it, though some tokenizers would.
    assert whole[: len(ids)] == ids.tolist() and ids.tolist()[-len(bare) :] == bare
    assert ids[-1] != tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("kind", "opening"),
    [
        *(("byte_level", []), ("gemma_like", ["<bos>"]), ("llama_like", ["<s>"]), ("closing", ["<s>"])),
        *(("prefixed", ["[gMASK]", "<sop>"]), ("words", []), ("unigram", ["<s>"])),
    ],
)
def test_what_a_tokenizer_puts_first_is_asked_of_it(kind, opening):
    tokenizer = KINDS[kind]()
    assert tokenizer.convert_ids_to_tokens(texts.opening(tokenizer)) == opening


def test_bos_is_on_or_off_whatever_the_tokenizer_does(tokenizer):
    text = written("to be or not to be")
    bare = tokenizer("to be or not to be", add_special_tokens=False)["input_ids"]
    off = texts.tokenized(text, tokenizer, bos="off")
    assert off.ids.tolist() == bare and off.begins == ""
    if tokenizer.bos_token is None:
        with pytest.raises(ValueError, match="no token that begins a text"):
            texts.tokenize(text, tokenizer, bos="on")
        return
    on = texts.tokenized(text, tokenizer, bos="on")
    assert on.begins.endswith(tokenizer.bos_token)
    assert on.ids.tolist() == [*texts.opening(tokenizer, "on"), *bare]
    assert on.ids.tolist().count(tokenizer.bos_token_id) == 1
    # A limit counts it.
    assert np.array_equal(texts.tokenize(text, tokenizer, bos="on", limit=4), on.ids[:4])


def test_no_text_begins_twice(tokenizer):
    if tokenizer.bos_token is None:
        return
    for bos in texts.BOS:
        # Written as a control token that is meant, or there in ids already.
        opening = "".join(tokenizer.convert_ids_to_tokens(texts.opening(tokenizer, "on")))
        ids = texts.tokenize(written(f"{opening}to be or not"), tokenizer, bos=bos, special="tokens").tolist()
        assert ids.count(tokenizer.bos_token_id) == 1
        again = texts.tokenized(numbered(ids), tokenizer, bos=bos)
        assert again.ids.tolist() == ids
        assert again.begins.endswith(tokenizer.bos_token)


def test_token_ids_are_taken_as_they_are_unless_bos_is_on():
    tokenizer, ids = tokenizers.gemma_like(), [40, 41, 42]
    assert texts.tokenize(numbered(ids), tokenizer).tolist() == ids
    assert texts.tokenize(numbered(ids), tokenizer, bos="off").tolist() == ids
    assert texts.tokenize(numbered(ids), tokenizer, bos="on").tolist() == [tokenizer.bos_token_id, *ids]
    assert texts.tokenize(numbered(ids), None).tolist() == ids
    with pytest.raises(ValueError, match="no tokenizer"):
        texts.tokenize(numbered(ids), None, bos="on")


def test_half_a_beginning_is_made_whole():
    tokenizer = tokenizers.prefixed()
    mask, sop = texts.opening(tokenizer)
    assert texts.begun([mask, sop], [sop, 7]).tolist() == [mask, sop, 7]


def test_names_of_control_tokens_in_a_text_are_text(tokenizer):
    read = texts.tokenized(written(WRITTEN), tokenizer, bos="off")
    known = control_tokens(tokenizer)
    unknown = tokenizer.unk_token_id
    assert not {i for i in read.ids.tolist() if i != unknown} & known.keys()
    # It is read as by a tokenizer that never had them: so any other name in its place is cut at the same places.
    assert set(read.as_text) == {name for name in known.values() if name in WRITTEN} and read.as_text
    assert all(name in read.note for name in read.as_text[:3]) and read.note.endswith(".")
    meant = texts.tokenized(written(WRITTEN), tokenizer, bos="off", special="tokens")
    assert meant.ids.tolist() == tokenizer(WRITTEN, add_special_tokens=False)["input_ids"]
    assert meant.as_text == () and meant.note == ""
    assert {known[i] for i in meant.ids.tolist() if i in known} >= set(read.as_text)


@pytest.mark.parametrize("kind", ["byte_level", "gemma_like", "llama_like", "closing"])
def test_text_with_names_of_control_tokens_is_whole(kind):
    tokenizer = KINDS[kind]()
    ids = texts.tokenize(written(WRITTEN), tokenizer, bos="off")
    assert said(tokenizer, ids).removeprefix(" ") == WRITTEN


def test_text_is_cut_as_if_the_tokenizer_had_no_control_tokens():
    """A second tokenizer, made the same way and never given them, has the same tokens."""
    tokenizer, plain = tokenizers.byte_level(), tokenizers.byte_level(control=False)
    content = "say <|im_end|> and <think> there<|endoftext|>is"
    ids = texts.tokenize(written(content), tokenizer).tolist()
    assert ids == plain(content)["input_ids"]
    # Not so when it is cut at their names and each part is read alone.
    assert tokenizer.convert_tokens_to_ids("Ġ<") in ids


def test_a_merge_that_leads_to_a_control_token_makes_none():
    tokenizer = tokenizers.llama_like(legacy=False)
    with_token = tokenizer("x<s>y", add_special_tokens=False)["input_ids"]
    assert tokenizer.bos_token_id in with_token
    ids = texts.tokenize(written("x<s>y"), tokenizer, bos="off").tolist()
    assert tokenizer.bos_token_id not in ids and said(tokenizer, ids).strip() == "x<s>y"


def test_added_white_space_stays_what_it_is():
    tokenizer = tokenizers.gemma_like()
    newlines = tokenizer.convert_tokens_to_ids("\n\n")
    for content in ("to be\n\nor not", "to be\n\nor <bos> not"):
        assert newlines in texts.tokenize(written(content), tokenizer).tolist()


def test_words_that_are_unknown_are_no_control_tokens():
    read = texts.tokenized(written("to be xyzzy"), tokenizers.words())
    assert read.as_text == () and tokenizers.words().unk_token_id in read.ids


def test_what_is_read_as_text_far_beyond_the_limit_is_not_said():
    text = written("to be or not " * 600 + "<bos>")
    assert texts.tokenized(text, tokenizers.gemma_like(), limit=20).as_text == ()


@pytest.mark.parametrize("limit", [2, 3, 5, 8, 9, 10, 11, 12, 20, 40])
def test_a_limit_changes_nothing_before_it(tokenizer, limit):
    text = written(f"the question is {WRITTEN} " * 2)
    assert texts.tokenize(text, tokenizer, limit=limit).tolist() == texts.tokenize(text, tokenizer).tolist()[:limit]


def test_a_tokenizer_is_left_as_it_was(tokenizer):
    before = tokenizer.backend_tokenizer.to_str()
    texts.tokenize(written(WRITTEN), tokenizer)
    assert tokenizer.backend_tokenizer.to_str() == before and not tokenizer.backend_tokenizer.encode_special_tokens


def test_bos_looks_like_itself():
    tokenizer = tokenizers.gemma_like()
    ids = texts.tokenize(written("to be or not"), tokenizer)
    assert texts.token_texts(tokenizer, ids)[0] == "<bos>" and said(tokenizer, ids) == "<bos>to be or not"


@pytest.mark.parametrize(("old", "now"), [(True, "on"), (False, "off"), ("auto", "auto"), ("on", "on")])
def test_specs_of_older_runs_are_read(old, now):
    about = json.loads(Spec("embedded", "hamlet", ("dense",)).to_json()) | {"bos": old}
    # Older ones know nothing of special tokens.
    del about["special"]
    spec = Spec.from_json(json.dumps(about))
    assert spec.bos == now and spec.special == "text" and Spec.from_json(spec.to_json()) == spec


def test_older_run_folders_are_read(run, gemma, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("to be or not to be")
    asked = ["stream", "--model", gemma, "--text", str(text), "--device", "cpu", "--policy", "dense"]
    assert run(*asked, "--out", str(tmp_path / "o"))[0] == 0
    path = tmp_path / "o" / "run.json"
    about = json.loads(path.read_text())
    assert about["spec"]["bos"] == "auto" and about["begins"] == "<bos>"
    del about["begins"], about["as_text"], about["spec"]["special"]
    about["spec"]["bos"] = False
    path.write_text(json.dumps(about))
    old = load_run(tmp_path / "o")
    assert old.spec.bos == "off" and old.begins is None and len(old.tracks[0].nll)


@pytest.mark.parametrize("wrong", [{"bos": "yes"}, {"special": "maybe"}])
def test_a_setting_that_is_none_is_one_sentence(wrong):
    with pytest.raises(ValueError, match=r"^(bos|special) must be one of [^\n]+$"):
        Spec("embedded", "hamlet", ("dense",), **wrong)


@pytest.mark.parametrize(("flag", "begins"), [([], "<bos>"), (["--bos"], "<bos>"), (["--no-bos"], "")])
def test_every_command_reads_as_the_tokenizer_does_unless_told_otherwise(run, gemma, tmp_path, flag, begins):
    """Each number of `stream` is that of the model's own forward pass over the tokenizer's own tokens."""
    text, content = tmp_path / "a.txt", "to be or not to be that is the question <eos> " * 3
    text.write_text(content)
    common = ["--model", gemma, "--text", str(text), "--device", "cpu", *flag]
    code, shown, wrong = run("stream", *common, "--policy", "dense", "--out", str(tmp_path / "s"))
    assert code == 0, wrong
    words = "with <bos>" if begins else "without BOS"
    assert f"begins {words}" in shown and "<eos> in the text is read as text" in shown
    found = load_run(tmp_path / "s")
    assert found.begins == begins and found.as_text == ("<eos>",)
    ids = [found.first_token, *found.tracks[0].token_ids.view().tolist()]
    tokenizer = tokenizers.gemma_like()
    assert (ids[0] == tokenizer.bos_token_id) == bool(begins)
    assert tokenizer.bos_token_id not in ids[1:] and tokenizer.eos_token_id not in ids
    with torch.inference_mode():
        logits = tiny()(torch.tensor([ids])).logits[0, :-1]
    wanted = torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
    np.testing.assert_allclose(found.tracks[0].nll.view(), wanted, atol=1e-4)
    # The others read the same tokens.
    code, shown, _ = run("capture", *common, "--tokens", "20", "--out", str(tmp_path / "c"))
    about = json.loads((tmp_path / "c" / "stretch.json").read_text())
    assert code == 0 and about["begins"] == begins and np.load(tmp_path / "c" / "token_ids.npy").tolist() == ids[:21]
    code, shown, _ = run("knockout", *common, "--tokens", "30", "--layer", "0")
    assert code == 0 and f"30 tokens {words}" in " ".join(shown.split())
    code, shown, _ = run("reproduce", "sinks", *common, "--tokens", "30", "--cache", "16", "--out", str(tmp_path / "r"))
    assert code == 0
    cell = next(p for p in (tmp_path / "r").iterdir() if p.is_dir())
    assert load_run(cell).begins == begins and load_run(cell).tracks[0].token_ids.view().tolist() == ids[1:30]
    assert words in (tmp_path / "r" / "table.csv").read_text().splitlines()[0]


def test_a_grid_of_another_bos_is_refused_and_an_older_one_goes_on(run, gemma, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("to be or not to be that is the question " * 3)
    asked = ["reproduce", "sinks", "--model", gemma, "--text", str(text), "--device", "cpu", "--tokens", "30"]
    asked += ["--cache", "16", "--out", str(tmp_path / "r")]
    assert run(*asked, "--no-bos")[0] == 0
    code, _, wrong = run(*asked)
    assert code == 2 and "read its text in another way (--bos, --special): choose another --out" in wrong
    for path in (tmp_path / "r").glob("*/run.json"):
        # As it was written before.
        about = json.loads(path.read_text())
        about["spec"]["bos"] = False
        del about["spec"]["special"]
        path.write_text(json.dumps(about))
    code, shown, _ = run(*asked, "--no-bos")
    assert code == 0 and ": done" not in shown


def test_names_of_control_tokens_are_tokens_when_that_is_asked(run, gemma, tmp_path):
    text = tmp_path / "a.txt"
    text.write_text("<bos><start_of_turn>to be or not<end_of_turn> that is")
    asked = ["stream", "--model", gemma, "--text", str(text), "--device", "cpu", "--policy", "dense"]
    code, shown, _ = run(*asked, "--special", "tokens", "--out", str(tmp_path / "o"))
    found = load_run(tmp_path / "o")
    ids = [found.first_token, *found.tracks[0].token_ids.view().tolist()]
    assert code == 0 and ids == tokenizers.gemma_like()(text.read_text(), add_special_tokens=False)["input_ids"]
    assert "read as text" not in shown
    code, _, wrong = run(*asked, "--special", "some")
    assert code == 2 and wrong == "error: --special must be one of text, tokens, not 'some'\n"


def test_each_sample_is_a_text_of_its_own():
    samples = samples_of(np.arange(10, 110), 4, 10, [1, 2])
    assert samples.shape == (4, 10) and (samples[:, :2] == [1, 2]).all()
    assert samples[:, 2].tolist() == [10, 40, 70, 100] and samples[-1].tolist() == [1, 2, *range(100, 108)]
    # One that begins so already does not twice.
    assert samples_of(np.array([1, 2, 5, 6, 7]), 1, 5, [1, 2]).tolist() == [[1, 2, 5, 6, 7]]
    with pytest.raises(ValueError, match="BOS alone"):
        samples_of(np.arange(5), 2, 2, [1, 2])
    tokenizer = tokenizers.gemma_like()
    text = written("to be or not to be that is the question " * 3)
    for bos, begins in (("auto", "<bos>"), ("on", "<bos>"), ("off", "")):
        read = samples_of_text(text, tokenizer, Spec("m", "t", ("dense",), 8, bos=bos), 5)
        assert read.begins == begins
        assert ((read.ids == tokenizer.bos_token_id).sum(1) == (1 if begins else 0)).all()


def test_words_of_a_notebook_are_mapped_from_bos_on(gemma):
    model = load(gemma, device="cpu")
    words = "to be or not to be"
    bare = len(model.tokenizer(words, add_special_tokens=False)["input_ids"])
    assert map_of(model, words, layer=1, head=0)["map"].shape == (bare + 1, bare + 1)
    assert map_of(model, words, layer=1, head=0, bos="off")["map"].shape == (bare, bare)


def test_other_first_tokens_never_put_a_second_bos(gemma):
    model = load(gemma, device="cpu")
    ids = texts.tokenize(written("to be or not to be that is the question"), model.tokenizer)
    source = SharedContext(model.adapted, ids, 4, 0, tokenizer=model.tokenizer)
    assert source.starting("bos", 4).tolist() == ids.tolist()
    # Where no first tokens count, none are others.
    assert torch.equal(source.starting("newlines", 0), source.ids)
    bos = model.tokenizer.bos_token_id
    assert texts.tokenize(texts.play("macbeth"), model.tokenizer, limit=4).tolist()[0] == bos
    assert bos not in source.starting("macbeth", 4).tolist()[:4]
    off = SharedContext(model.adapted, ids[1:], 4, 0, tokenizer=model.tokenizer)
    assert off.starting("bos", 4).tolist()[:2] == [bos, int(ids[2])]
    lanes = open_lanes(model, ids, [parse("streaming:sinks=4,window=4,first=bos"), parse("streaming:sinks=4,window=4")])
    first, plain = (lane.read(99).nll for lane in lanes)
    np.testing.assert_allclose(first, plain, atol=1e-5)


def test_heads_are_measured_over_the_text_as_it_is_read(gemma):
    model, text = load(gemma, device="cpu"), written("to be or not to be that is the question " * 3)
    rated = {}
    for bos in ("off", "auto"):
        ids = texts.tokenize(text, model.tokenizer, bos=bos)
        rated[bos] = measured_scores(open_lanes(model, ids, [parse("dense")])[0].context)
    ids = [model.tokenizer.bos_token_id, *texts.tokenize(text, model.tokenizer, bos="off")]
    wanted = measured_scores(open_lanes(model, ids, [parse("dense")])[0].context)
    np.testing.assert_allclose(rated["auto"], wanted, atol=1e-6)
    assert np.abs(rated["off"] - wanted).max() > 1e-4


@pytest.mark.real
def test_embedded_model_puts_no_bos_by_itself(embedded):
    assert texts.opening(embedded.tokenizer) == []
    read = texts.tokenized(texts.read("hamlet"), embedded.tokenizer, limit=300)
    assert read.begins == "" and read.as_text == ()


@functools.cache
def network() -> LlamaForCausalLM:
    """One for all tokenizers, so that it is checked and traced once.  Nobody may change it."""
    return tiny()


def model_of(tokenizer) -> LanguageModel:
    return LanguageModel("tiny", network(), tokenizer, [])


def test_heads_are_knocked_out_with_newlines_put_first():
    policy = parse("streaming:sinks=4,window=20,first=newlines")
    (effect,) = knock_out_each(model_of(KINDS["byte_level"]()), np.arange(90), policy, "values", [(1, 0)])
    assert effect[:2] == (1, 0) and effect.excess != 0


@pytest.mark.parametrize("name", [name for name in KINDS if name != "words"])
def test_newlines_that_are_put_first_are_newlines_alone(name):
    """Whatever a tokenizer puts around a text by itself, and in however many tokens it writes a newline."""
    tokenizer = KINDS[name]()
    lane = open_lanes(model_of(tokenizer), np.arange(20), [parse("dense:first=newlines")])[0]
    ids = lane.ids.tolist()
    assert tokenizer.decode(ids[:4]) == "\n" * 4 and ids[4:] == [*range(4, 20)]


def test_where_a_newline_is_no_token_no_text_can_begin_with_newlines():
    model = model_of(KINDS["words"]())
    with pytest.raises(ValueError, match="no token for a newline: choose first=own"):
        open_lanes(model, np.arange(20), [parse("dense:first=newlines")])


def test_newlines_that_the_model_does_not_know_are_refused():
    model = LanguageModel("tiny", tiny(198), KINDS["byte_level"](), [])
    with pytest.raises(ValueError, match=r"first=newlines: .* makes token 198 of this, and the model knows 198"):
        open_lanes(model, np.arange(20), [parse("dense:first=newlines")])
