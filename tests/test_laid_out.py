"""Weights that are kept as they lie in memory: the same numbers as any other file gives, and none of them copied."""

import pytest
import torch

from analysis.models import conversions, laid_out
from analysis.models.loading import load

from .families import tiny, words

pytestmark = pytest.mark.whole

FILE = "model.safetensors"


@pytest.fixture(scope="module", params=[False, True], ids=["free", "tied"])
def folders(request, tmp_path_factory):
    """The same model as transformers saves it, and as a conversion lies in the cache."""
    place = tmp_path_factory.mktemp("models")
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "vocab_size": 96}
    network = tiny("llama", tie_word_embeddings=request.param, **sizes)
    network.save_pretrained(place / "plain")
    conversions.place(place / "kept", network, None)
    return place / "plain", place / "kept"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("weights", ["model", "int8", "int4"])
@torch.inference_mode()
def test_a_conversion_says_what_the_plain_file_says(folders, dtype, weights):
    plain, kept = (load(str(folder), dtype=dtype, device="cpu", weights=weights) for folder in folders)
    ids = torch.as_tensor(words(30))[None]
    assert torch.equal(kept.network(ids).logits, plain.network(ids).logits)
    for name, weight in plain.network.state_dict().items():
        assert torch.equal(kept.network.state_dict()[name], weight)
        assert weights != "model" or kept.network.state_dict()[name].stride() == weight.stride() or dtype == "float32"


def test_a_conversion_is_mapped_and_nothing_of_it_is_copied(folders):
    model = load(str(folders[1]), device="cpu")
    (storage,) = {w.untyped_storage().data_ptr() for w in model.network.state_dict().values()}
    before = {name: (w.data_ptr(), w.stride()) for name, w in model.network.state_dict().items()}
    assert all((pointer - storage) % 4 == 0 for pointer, _ in before.values())
    assert model.adapted.layers == 4
    assert {name: (w.data_ptr(), w.stride()) for name, w in model.network.state_dict().items()} == before
    attention = model.network.model.layers[0].self_attn
    # One product for all three, whose outputs lie side by side.
    rows = sum(len(m.weight) for m in (attention.q_proj, attention.k_proj, attention.v_proj))
    assert attention.q_proj.weight.stride() == attention.v_proj.weight.stride() == (1, rows)
    assert attention.q_proj.weight.data_ptr() % laid_out.ALIGNED == storage % laid_out.ALIGNED


def test_what_is_tied_is_written_once(folders):
    model = load(str(folders[0]), device="cpu")
    numbers = sum(p.numel() for p in model.network.parameters())
    assert 4 * numbers < (folders[1] / FILE).stat().st_size < 4 * numbers + 20_000


def test_what_is_not_float32_is_saved_as_transformers_does(tmp_path):
    conversions.place(tmp_path / "half", tiny("llama").bfloat16(), None)
    assert laid_out.read([tmp_path / "half" / FILE]) is None
    assert load(str(tmp_path / "half"), dtype="bfloat16", device="cpu").dtype == "bfloat16"


def test_a_file_of_somebody_else_is_read_as_any_other(folders, tmp_path):
    """What it says of where its weights lie is believed where its conversion is known to be whole."""
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    for path in folders[1].iterdir():
        if path.name != conversions.MANIFEST:
            (stranger / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match=r"lacks \d+ of its weights"):
        load(str(stranger), device="cpu")


def test_what_does_not_lie_in_its_file_is_refused(folders, tmp_path):
    path = tmp_path / FILE
    path.write_bytes((folders[1] / FILE).read_bytes()[:-400])
    with pytest.raises(RuntimeError, match="not resizable"):
        laid_out.read([path])
