"""Reading a GGUF file once gives what reading it again and again gives, and leaves nothing replaced."""

import gguf
import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from analysis.models.gguf_once import Reader, read_once
from analysis.models.memory import numbers_in

from .gguf_files import tiny, write

pytestmark = pytest.mark.whole


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write(tiny("llama"), tmp_path_factory.mktemp("once") / "tiny.gguf")


def test_the_reader_sees_the_same_bytes(file):
    ours, theirs = Reader(file), gguf.GGUFReader(file)
    assert list(ours.fields) == list(theirs.fields)
    for name, field in theirs.fields.items():
        assert field.contents() == ours.fields[name].contents()
    for a, b in zip(ours.tensors, theirs.tensors, strict=True):
        assert a.name == b.name and a.tensor_type == b.tensor_type
        np.testing.assert_array_equal(a.data, b.data)


def test_a_load_parses_the_file_once_and_gives_the_same_weights(file, monkeypatch):
    local = {"gguf_file": file.name, "local_files_only": True}
    plain = AutoModelForCausalLM.from_pretrained(file.parent, **local).state_dict()
    parsed = []
    init = Reader.__init__
    monkeypatch.setattr(Reader, "__init__", lambda self, path: (parsed.append(path), init(self, path))[1])
    with read_once():
        AutoConfig.from_pretrained(file.parent, **local)
        once = AutoModelForCausalLM.from_pretrained(file.parent, **local).state_dict()
        gguf.GGUFReader(parsed[0])
        assert numbers_in(file) == sum(weight.numel() for weight in plain.values())
    assert len(parsed) == 1
    assert plain.keys() == once.keys() and all(bool((plain[name] == once[name]).all()) for name in plain)


def test_nothing_stays_replaced():
    own = gguf.GGUFReader, gguf.get_tensor_name_map
    with read_once():
        assert gguf.GGUFReader is not own[0]
    with pytest.raises(FileNotFoundError), read_once():
        gguf.GGUFReader("nothing.gguf")
    assert (gguf.GGUFReader, gguf.get_tensor_name_map) == own
