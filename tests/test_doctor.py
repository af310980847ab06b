"""`gancli doctor` says what a run would take, and leaves nothing behind."""

from conftest import TINY

FEW = ["evaluation.every=32", "evaluation.count=40", "evaluation.reference_count=100"]


def test_it_reports_and_leaves_nothing(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("gancli.doctor.SECONDS", 0.2)
    result = cli("doctor", *TINY, *FEW)
    assert result.status == 0, result.err
    for word in ("parameters", "images/s", "GiB", "64 images in 0:00:", "metrics       fid", "launcher      none"):
        assert word in result.err, word
    assert "mode collapse" not in result.err and list(tmp_path.iterdir()) == []


def test_a_budget_of_minutes(cli, monkeypatch):
    monkeypatch.setattr("gancli.doctor.SECONDS", 0.2)
    result = cli("doctor", *TINY, "train.images=null", "train.minutes=3")
    assert result.status == 0, result.err
    assert "0:03:00, by train.minutes: about" in result.err and "metrics       none" in result.err


def test_bad_input_is_that_of_train(cli):
    result = cli("doctor", *TINY, "train.batch_size=0")
    assert result.status == 2 and "train.batch_size=0: at least 1" in result.err
    result = cli("doctor", "train.imagez=3")
    assert result.status == 2 and "did you mean train.images?" in result.err
