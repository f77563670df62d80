"""Tiny tokenizers of every kind that begins a text in its own way, each with control tokens, and their templates."""

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

WORDS = (
    "to be or not to be that is the question say hello there my name is a cat and what is yours in the text <s> think"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _finished(backend, special, added=(), **names) -> PreTrainedTokenizerFast:
    made = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    made.add_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    made.add_tokens([AddedToken(t, special=False, normalized=False) for t in added])
    return made


def _around(backend, single: str, *names: str) -> None:
    """Let it put these around a text by itself."""
    ids = [(name, backend.token_to_id(name)) for name in names]
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)


def byte_level(*, control: bool = True) -> PreTrainedTokenizerFast:
    """Like GPT-2's and Qwen's: bytes, no BOS by itself; `<think>` is added and not special."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator([WORDS] * 4, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    if not control:
        return PreTrainedTokenizerFast(tokenizer_object=backend)
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    made = _finished(backend, special, ("<think>", "</think>"), bos_token="<|endoftext|>", eos_token="<|im_end|>")
    made.chat_template = CHATML
    return made


def _pieces(unknown: str, special: list[str], more: list[str] = ()) -> Tokenizer:
    """Pieces with ▁ for a space, and bytes for what they lack, as sentencepiece has them."""
    signs = sorted({*WORDS, *"<>|/_[]{}.,!?:\n▁0123456789"} - {" "})
    vocab = [unknown, *special, *(f"<0x{byte:02X}>" for byte in range(256)), *signs]
    pairs = [
        ("▁", "t"),
        ("t", "o"),
        ("▁", "to"),
        ("b", "e"),
        ("▁", "be"),
        ("▁", "i"),
        ("▁i", "s"),
        ("▁", "<"),
        ("s", ">"),
    ]
    # A merge that would make a control token of what somebody wrote.
    pairs += [("<", "s>")] if "<s>" in special else []
    vocab += [a + b for a, b in pairs if a + b not in vocab]
    vocab += [m for m in more if m not in vocab]
    model = models.BPE({p: i for i, p in enumerate(vocab)}, pairs, byte_fallback=True, fuse_unk=True, unk_token=unknown)
    return Tokenizer(model)


def gemma_like() -> PreTrainedTokenizerFast:
    """Puts `<bos>` first; no space is put before a text, and newlines are added tokens."""
    backend = _pieces("<unk>", ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"], ["\n\n"])
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    _around(backend, "<bos> $A", "<bos>")
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>", "pad_token": "<pad>"}
    made = _finished(backend, ("<start_of_turn>", "<end_of_turn>"), ("\n", "\n\n"), **names)
    made.chat_template = (
        "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
        "{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
        "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    )
    return made


def llama_like(single: str = "<s> $A", *, legacy: bool = True) -> PreTrainedTokenizerFast:
    """Puts `<s>` first, and a space before a text: after every control token (`legacy`) or only at its beginning."""
    backend = _pieces("<unk>", ["<s>", "</s>"])
    if legacy:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    strip = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence(strip)
    _around(backend, single, *(name for name in ("<s>", "</s>") if name in single))
    made = _finished(backend, (), ("<think>",), bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    made.chat_template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content | trim }} [/INST]"
        "{% else %} {{ m.content | trim }}</s>{% endif %}{% endfor %}"
    )
    return made


def closing() -> PreTrainedTokenizerFast:
    """Puts BOS before a text and EOS behind it."""
    return llama_like("<s> $A </s>")


def prefixed() -> PreTrainedTokenizerFast:
    """Puts two tokens first, as GLM's does."""
    backend = _pieces("<unk>", ["[gMASK]", "<sop>", "<eop>"])
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    _around(backend, "[gMASK] <sop> $A", "[gMASK]", "<sop>")
    return _finished(backend, ("[gMASK]",), bos_token="<sop>", eos_token="<eop>", unk_token="<unk>")


def words() -> PreTrainedTokenizerFast:
    """Whole words and nothing for others; it knows no BOS."""
    vocab = {
        w: i for i, w in enumerate(dict.fromkeys(["[UNK]", "[END]", *WORDS.split(), "<", ">", "[", "]", "END", "UNK"]))
    }
    backend = Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return _finished(backend, (), ("<think>",), eos_token="[END]", unk_token="[UNK]")


def unigram() -> PreTrainedTokenizerFast:
    """Pieces with scores; a control token among them."""
    signs = [*dict.fromkeys(WORDS.replace(" ", "▁") + "<>|/_[]\n")]
    vocab = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *((c, -5.0) for c in signs), ("▁to", -3.0), ("▁be", -3.0)]
    backend = Tokenizer(models.Unigram(vocab, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace("▁")
    backend.decoder = decoders.Metaspace("▁")
    _around(backend, "<s> $A", "<s>")
    return _finished(backend, (), bos_token="<s>", eos_token="</s>", unk_token="<unk>")


KINDS = {f.__name__: f for f in (byte_level, gemma_like, llama_like, closing, prefixed, words, unigram)}
