"""A capture that somebody ends leaves nothing, and says so."""

from analysis.cli.waiting import Bars


def test_an_interrupted_capture_says_that_nothing_of_it_is_kept(run, model, text, tmp_path, monkeypatch):
    def pressed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Bars, "update", pressed)
    code, said, _ = run("capture", "--model", model, "--text", text, "--device", "cpu", "--out", str(tmp_path / "s"))
    assert code == 130 and "Interrupted: part of a stretch is of no use, so nothing of it is kept." in said
    assert not list(tmp_path.iterdir())
