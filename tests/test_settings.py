"""Values that settings may not take: refused by name, or a run goes well with them, whatever is given."""

import random
from pathlib import Path

import pytest
import torch

from gancli import config, errors
from gancli.commands import doctor
from gancli.errors import SettingError, require_at_least, require_between, require_memory, require_positive
from gancli.networks.layers import ProjectionHead
from gancli.schedules import Linear, Schedule

ROOT = Path(__file__).parent.parent
OPTIMISTIC = "optimizer@optimizer.generator=optimistic_"
SCHEDULED = ("+schedule@{key}=linear", "{key}.start=0.5")


@pytest.fixture(scope="module")
def fuzz(tmp_path_factory):
    """The script of that name, in a folder with what its cases read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "scripts")
        patch.chdir(tmp_path_factory.mktemp("fuzz"))
        import fuzz_settings

        fuzz_settings.prepare(patch.setattr, runs=("points",))
        yield fuzz_settings


def test_a_sample_of_all_cases_goes_well(fuzz):
    known = [(command, overrides) for command, overrides in fuzz.compositions() if command != "theory"]
    chosen = [known[0], next(each for each in known if each[0] == "sample" and "run=points" in each[1])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fuzz, "compositions", lambda: chosen)
        cases = sorted(fuzz.cases({"train", "sample"}), key=str)
    for case in random.Random(0).sample(cases, 40):
        kind, text = fuzz.outcome(case)
        assert kind in (fuzz.REFUSED, fuzz.ACCEPTED, fuzz.DIVERGED), f"{case}\n{text}"
        for path in set(Path().iterdir()) - {Path(name) for name in ("photos", "data", "table.txt", "points")}:
            fuzz.remove(path)


REFUSED = {  # key, value, overrides -> what the error must hold
    "a list for a number or a schedule": ("penalty.r1.weight", "[1,2]", (), "expected float or Schedule"),
    "a list for a number of an optimizer": ("optimizer.generator.lr", "[]", (), "expected float"),
    "a mapping for a number": ("ema.half_life", "{}", (), "expected float or Schedule"),
    "true for a number": ("train.batch_size", "true", (), "expected int"),
    "true for one of several numbers": (
        "dataset.channels",
        "true",
        None,
        "expected one of 1, 3",
    ),
    "a number in quotes": ("train.minutes", "'1'", (), "expected float"),
    "infinity": ("health.lost_quality", "1e400", (), "expected float"),
    "no text": ("evaluation.cache", "''", (), "is empty"),
    "no text for a setting of the whole run": ("objective", "''", (), "is empty"),
    "a schedule that ends below 0": (
        "optimizer.generator.lr.end",
        "-1",
        [word.format(key="optimizer.generator.lr") for word in SCHEDULED],
        "lr=-1.0 by Linear(start=0.5, end=-1, begin=0.0, finish=1.0): at least 0",
    ),
    "a penalty that ends below 0": (
        "penalty.r1.weight.end",
        "-1",
        [word.format(key="penalty.r1.weight") for word in SCHEDULED],
        "weight=-1.0 by Linear(start=0.5, end=-1, begin=0.0, finish=1.0): at least 0",
    ),
    "a negative rate": ("optimizer.generator.lr", "-1", (f"{OPTIMISTIC}sgd",), "lr=-1: at least 0"),
    "decay rates above 1": ("optimizer.generator.betas", "[1,2]", (f"{OPTIMISTIC}adam",), "at least 0 and below 1"),
    "a share above 1": ("health.modes", "1e9", (), "expected float|from 0 to 1"),
    "a share below 0": ("health.overfitting", "-1", (), "from 0 to 1"),
    "a radius below 0": ("dataset.radius", "-1", (), "a number above 0"),
    "points that float32 cannot tell apart": ("dataset.std", "1e26", (), "from -1,000,000,000 to 1,000,000,000"),
    "more layers than can be built": ("network.generator.depth", "1e9", (), "from 1 to 1,000"),
    "more steps of D than end": ("update.discriminator_steps", "1e9", ("update=alternating",), "from 1 to 1,000"),
    "more threads than there can be": ("device.threads", "1e9", (), "from 1 to 1,024"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_values_are_refused_by_name(fuzz, name):
    key, value, overrides, expected = REFUSED[name]
    given = fuzz.IMAGES if overrides is None else (*fuzz.POINTS, *overrides)
    kind, text = fuzz.outcome(fuzz.Case("train", tuple(given), key, value))
    assert kind == fuzz.REFUSED and any(each in text for each in expected.split("|")), text


@pytest.mark.parametrize(
    "key",
    [
        *("network.generator.width", "network.discriminator.width", "prior.dim", "pack", "dataset.modes"),
        *("train.batch_size", "evaluation.count", "log.samples", "log.holdout"),
    ],
)
def test_sizes_beyond_the_memory_are_refused_before_anything_is_allocated(fuzz, key, monkeypatch):
    monkeypatch.setattr(errors, "memory_limit", lambda: 2.0**30)
    kind, text = fuzz.outcome(fuzz.Case("train", tuple(fuzz.POINTS), key, "1e9"))
    assert kind == fuzz.REFUSED and f"{key}=1000000000: would take " in text, text
    assert "GiB of memory or more; there are 1.0 GiB" in text


def test_numbers_too_large_to_count_are_too_large(fuzz):
    kind, text = fuzz.outcome(fuzz.Case("train", tuple(fuzz.IMAGES), "network.generator.channels", "1e9"))
    assert kind == fuzz.REFUSED and "network.generator.max_channels" in text
    wide = ["network.generator.max_channels=1000000000"]
    kind, text = fuzz.outcome(fuzz.Case("train", (*fuzz.IMAGES, *wide), "network.generator.channels", "1e9"))
    assert kind == fuzz.REFUSED and "channels=1000000000: would take" in text


def test_a_schedule_and_a_list_are_asked_for_all_their_numbers():
    require_at_least(0, lr=Linear(start=1.0, end=0.0), betas=[0.0, Linear(start=0.5, end=0.9)], other=None)
    with pytest.raises(SettingError, match=r"^lr=-0.5 by Linear\(start=1.0, end=-0.5, .*\): at least 0$"):
        require_at_least(0, lr=Linear(start=1.0, end=-0.5))
    with pytest.raises(SettingError, match=r"^betas=1.5 in \[0.0, Linear\(.*\)\]: from 0 to 1$"):
        require_between(0, 1, betas=[0.0, Linear(start=0.5, end=1.5)])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0])
def test_what_is_not_finite_is_in_no_range(value):
    with pytest.raises(SettingError, match=r"^x="):
        require_positive(x=value)


def test_the_largest_setting_is_named_for_the_memory(monkeypatch):
    monkeypatch.setattr(errors, "memory_limit", lambda: 2.0**34)
    require_memory(2.0**34, width=7)
    with pytest.raises(SettingError, match=r"^width=9: would take 32.0 GiB of memory or more; there are 16.0 GiB$"):
        require_memory(2.0**35, depth=3, width=9)


def test_the_limit_of_the_process_counts_as_memory(monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (2**20, resource.RLIM_INFINITY))
    assert errors.memory_limit() == 2**20


def test_an_object_of_another_class_is_no_number_and_no_schedule():
    cosine = {"_target_": "gancli.schedules.Cosine", "start": 1.0}
    assert config.fits(cosine, float | Schedule) and not config.fits(cosine, float)
    assert config.fits([0.0, cosine], tuple[float, float], scheduled=True)
    assert not config.fits(cosine, int, scheduled=True)
    assert not config.fits({"_target_": "gancli.distributions.Normal"}, float | Schedule)


def test_lengths_beyond_the_calendar_are_told_in_years():
    assert doctor._duration(90) == "0:01:30"
    assert doctor._duration(1e28).endswith(" years")


def test_logits_beyond_all_bins_of_a_histogram_are_logged(fuzz, monkeypatch):
    linear = torch.nn.functional.linear
    monkeypatch.setattr(ProjectionHead, "forward", lambda self, h, _: 1e25 + linear(h, *self.linear.parameters())[:, 0])
    kind, text = fuzz.outcome(fuzz.Case("train", (*fuzz.POINTS, "penalty=none", "loss=hinge"), "seed", "1"))
    assert kind == fuzz.ACCEPTED, text
    fuzz.remove(Path("run"))
