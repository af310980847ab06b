"""What a run shows, read back."""

import json

import pytest
from PIL import Image

from gancli.game_value import SADDLE_VALUE, decision_threshold, game_statistics

SCALARS = {
    "loss/discriminator", "loss/generator", "accuracy/real", "accuracy/fake", "accuracy/holdout", "game/value",
    "game/distance_to_saddle", "grad_norm/discriminator", "grad_norm/generator", "lr/generator", "lr/discriminator",
    "speed/images_per_second", "penalty/r1", "logits/real", "logits/fake",
}  # fmt: skip


@pytest.fixture(scope="module")
def events(trained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(
        str(trained), size_guidance={"scalars": 0, "images": 0, "tensors": 0, "histograms": 0}
    )
    return accumulator.Reload()


def test_tensorboard_has_every_scalar_over_images_seen(events):
    assert set(events.Tags()["scalars"]) >= SCALARS
    for tag in SCALARS:
        assert [event.step for event in events.Scalars(tag)] == [16, 32, 48, 64]


def test_tensorboard_has_pictures_histograms_and_settings(events):
    tags = events.Tags()
    assert {"samples/real", "samples/ema", "samples/raw"} <= set(tags["images"])
    assert {"logits/real_histogram", "logits/fake_histogram"} <= set(tags["histograms"])
    assert "config/text_summary" in tags["tensors"]
    text = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "gancli.losses.NonSaturating" in text


def test_hyperparameters_are_there_for_the_hparams_tab(events):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
    session = HParamsPluginData.FromString(content).session_start_info
    assert session.hparams["seed"].number_value == 0
    assert session.hparams["optimizer.generator.lr"].number_value == pytest.approx(5e-4)


def test_metrics_jsonl_has_the_same_scalars(trained, events):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [row["images"] for row in rows] == [16, 32, 48, 64]
    for tag in SCALARS:
        assert [row[tag] for row in rows] == pytest.approx([event.value for event in events.Scalars(tag)], rel=1e-5)


def test_pictures_in_the_run_folder(trained):
    with (
        Image.open(trained / "samples.png") as last,
        Image.open(trained / "samples" / "images-000000000064.png") as grid,
    ):
        assert last.size == grid.size and last.tobytes() == grid.tobytes()
        assert last.info["Comment"] == "weights: ema"


def test_points_are_drawn_too(trained_on_points):
    with Image.open(trained_on_points / "samples.png") as picture:
        assert picture.mode == "RGB" and min(picture.size) >= 200


def test_a_shift_of_all_logits_means_nothing_to_a_relativistic_loss():
    import torch

    from gancli.losses import NonSaturating, Relativistic

    real, fake = torch.tensor([3.0, 2.0, 1.5, 0.5]), torch.tensor([0.0, 1.0, 0.5, -1.0])
    pairs = ((real, fake), (real + 9, fake + 9))
    plain, moved = (game_statistics(*pair, decision_threshold(*pair, Relativistic())) for pair in pairs)
    assert plain["game/value"] == pytest.approx(moved["game/value"].item())
    assert moved["accuracy/real"] == 0.75 and moved["accuracy/fake"] == 0.75  # the middle is at 0.9375
    assert game_statistics(*pairs[1], decision_threshold(*pairs[1], NonSaturating()))["accuracy/fake"] == 0.0


def test_at_the_saddle_point_the_value_of_the_game_is_minus_log_4():
    import torch

    from gancli.losses import Minimax

    zero = torch.zeros(4)
    assert game_statistics(zero, zero, decision_threshold(zero, zero, Minimax()))["game/value"].item() == pytest.approx(
        SADDLE_VALUE
    )
