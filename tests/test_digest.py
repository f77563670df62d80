"""The digest of a model is that of the weights that were loaded, or there is none."""

import hashlib

import pytest

from analysis.models.loading import load

pytestmark = pytest.mark.whole


@pytest.mark.parametrize("how", ["overwritten", "replaced"])
def test_weights_that_were_written_since_do_not_give_a_model_their_digest(tiny_llama, tmp_path, how):
    tiny_llama.save_pretrained(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    first, second = load(str(tmp_path / "m")), load(str(tmp_path / "m"))
    was = first.sha256
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    if how == "replaced":
        file.unlink()
    file.write_bytes(data)
    with pytest.raises(ValueError, match="was written after m had been loaded from it"):
        _ = second.sha256
    # What was known before stays, and what is loaded now is of the new file.
    assert first.sha256 == was and load(str(tmp_path / "m")).sha256 == hashlib.sha256(data).hexdigest() != was
