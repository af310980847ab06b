"""For every distribution, the CDF, its inverse, the density and the samples agree with each other."""

import numpy as np
import pytest
import torch

from gancli import distributions
from gancli.datasets.points import Distribution1d
from gancli.errors import SettingError
from gancli.metrics.base import Samples
from gancli.metrics.modes import Line
from gancli.randomness import seeded

SAMPLES = [-1.0, 0.0, 0.25, 0.5, 2.0, 5.0]
CASES = {
    "Normal": {"mean": -2.0, "std": 0.5},
    "Exponential": {"rate": 3.0},
    "Uniform": {"low": -1.0, "high": 4.0},
    "GaussianMixture": {"means": [-2.0, 0.0, 3.0], "stds": [0.3, 1.0, 0.5], "weights": [1.0, 2.0, 5.0]},
    "Expression": {"cdf": "1 - exp(-x**2)", "low": 0.0, "high": 6.0},
    "Table": {},
}


KINDS = [kind for kind in distributions.Distribution.__subclasses__() if kind.__module__ == distributions.__name__]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def distribution(request, tmp_path):
    settings = dict(CASES[request.param.__name__])
    if request.param is distributions.Table:
        file = tmp_path / "samples.txt"
        file.write_text("\n".join(map(str, SAMPLES)))
        settings["path"] = str(file)
    return request.param(**settings)


def test_every_distribution_has_a_case():
    assert {kind.__name__ for kind in KINDS} == set(CASES)


def test_inverse_cdf_is_the_inverse_of_the_cdf(distribution):
    u = torch.linspace(0.001, 0.999, 997, dtype=torch.float64)
    x = distribution.inverse_cdf(u)
    assert x.dtype == torch.float64
    assert (distribution.cdf(x) - u).abs().max() < 1e-10
    assert (distribution.inverse_cdf(distribution.cdf(x)) - x).abs().max() < 1e-7
    assert (x.diff() > 0).all()


def test_samples_follow_the_cdf(distribution):
    count = 20_000
    samples = distribution.sample(count, seeded(0, "distributions"))
    assert samples.dtype == torch.float32 and samples.shape == (count,)
    probabilities = distribution.cdf(samples.sort().values)
    steps = torch.arange(count + 1, dtype=torch.float64) / count
    distance = torch.maximum((probabilities - steps[:-1]).abs().max(), (probabilities - steps[1:]).abs().max())
    assert distance < 0.0115  # the 1 % point of Kolmogorov's statistic
    assert torch.equal(samples, distribution.sample(count, seeded(0, "distributions")))


def test_density_integrates_to_one(distribution):
    low, high = distribution.inverse_cdf(torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist()
    edges = torch.linspace(low, high, 200_001, dtype=torch.float64)
    density = distribution.density((edges[1:] + edges[:-1]) / 2)
    assert (density >= 0).all()
    assert float((density * edges.diff()).sum()) == pytest.approx(1, abs=1e-4)


def test_density_is_the_derivative_of_the_cdf(distribution):
    x = distribution.inverse_cdf(torch.linspace(0.013, 0.987, 50, dtype=torch.float64))
    slope = (distribution.cdf(x + 1e-5) - distribution.cdf(x - 1e-5)) / 2e-5
    assert (slope - distribution.density(x)).abs().max() < 1e-5


def test_quantiles_of_0_and_1_are_finite_and_the_density_outside_is_0(distribution):
    ends = distribution.inverse_cdf(torch.tensor([0.0, 1.0]))
    assert torch.isfinite(ends).all() and ends[0] < ends[1]
    assert torch.isfinite(distribution.density(ends)).all()
    far = torch.tensor([-1e6, 1e6])
    assert distribution.cdf(far).tolist() == [0.0, 1.0]
    assert distribution.density(far).tolist() == [0.0, 0.0]


def test_methods_take_tensors_of_any_shape_and_stride(distribution):
    u = torch.linspace(0.05, 0.95, 12, dtype=torch.float64)
    for shaped in (u.view(3, 4), u.view(3, 4).T, u.view(4, 3)[:, 1]):
        x = distribution.inverse_cdf(shaped)
        assert x.shape == shaped.shape
        assert (distribution.cdf(x) - shaped).abs().max() < 1e-10
        strided = torch.stack([x, x], dim=-1)[..., 0]  # a column of a wider tensor
        assert torch.equal(distribution.density(strided), distribution.density(strided.contiguous()))


def test_tables_in_text_and_npy_files_are_equal(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(map(str, SAMPLES)))
    np.save(tmp_path / "a.npy", np.array(SAMPLES)[:, None])
    text, binary = (distributions.Table(path=str(tmp_path / name)) for name in ("a.txt", "a.npy"))
    assert text.x.tolist() == binary.x.tolist() == SAMPLES
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert text.inverse_cdf(u).tolist() == pytest.approx(
        np.quantile(SAMPLES, u.numpy()).tolist()
    )  # NumPy uses definition 7 too


@pytest.mark.parametrize("place", ["low", "middle", "high"])
def test_equal_samples_keep_their_probability(tmp_path, place):
    ties, others = np.full(900, {"low": 0.0, "middle": 0.5004, "high": 1.0}[place]), np.linspace(0.001, 0.999, 100)
    np.save(tmp_path / "a.npy", np.concatenate([ties, others]))
    distribution = distributions.Table(path=str(tmp_path / "a.npy"))
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)
    x = distribution.inverse_cdf(u)
    assert (x.diff() >= 0).all()
    assert float((x == float(np.float32(ties[0]))).double().mean()) == pytest.approx(0.9, abs=2e-3)
    jump = distribution.cdf(torch.tensor([ties[0] - 1e-6, ties[0] + 1e-6], dtype=torch.float64)).diff()
    assert float(jump) == pytest.approx(0.9, abs=2e-3)
    assert torch.isfinite(distribution.density(x)).all()
    samples = distribution.sample(20_000, seeded("ties"))[:, None]
    assert Line()(Samples(samples), None, Distribution1d(distribution=distribution))["ks"] < 0.0115


def test_the_path_of_a_table_may_start_at_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("1\n2\n")
    assert distributions.Table(path="~/a.txt").x.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("words.txt", b"one\ntwo\n", "not readable as a table of numbers"),
        ("bad.npy", b"not numpy", "not readable as a table of numbers"),
        ("empty.npy", b"", "not readable as a table of numbers"),
        ("empty.txt", b"", "at least two different, finite numbers"),
        ("same.txt", b"3\n3\n3\n", "at least two different, finite numbers"),
        ("nan.txt", b"1\n2\nnan\n", "at least two different, finite numbers"),
        ("wide.txt", b"1,2\n3,4\n", "not one column"),
        ("large.txt", b"1\n2\n1e300\n", "at least two different, finite numbers"),
        ("inf.txt", b"1\n2\ninf\n", "at least two different, finite numbers"),
    ],
)
def test_unusable_tables_are_refused(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SettingError, match=message) as caught:
        distributions.Table(path=str(path))
    assert str(caught.value).startswith(f"path={path}: ")


def test_a_missing_table_is_refused(tmp_path):
    with pytest.raises(SettingError, match=r"^path=.*none\.txt: not readable"):
        distributions.Table(path=str(tmp_path / "none.txt"))


def test_mixture_weights_are_normalised():
    distribution = distributions.GaussianMixture(means=[-10.0, 10.0], stds=[1.0, 1.0], weights=[1.0, 3.0])
    assert distribution.weights.tolist() == [0.25, 0.75]
    assert float(distribution.cdf(torch.tensor(0.0))) == pytest.approx(0.25)
    assert float((distribution.sample(4000, seeded(1)) > 0).float().mean()) == pytest.approx(0.75, abs=0.02)
    assert distributions.GaussianMixture(means=[0.0, 1.0], stds=[1.0, 1.0]).weights.tolist() == [0.5, 0.5]
    single = distributions.GaussianMixture(means=[0.0, 9.0], stds=[1.0, 1.0], weights=[1.0, 0.0])
    assert float(single.inverse_cdf(torch.tensor(0.5))) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("Normal", {"std": 0.0}, "std=0.0: a number above 0"),
        ("Normal", {"std": float("nan")}, "std=nan: a number above 0"),
        ("Exponential", {"rate": -1.0}, "rate=-1.0: a number above 0"),
        ("Uniform", {"low": 1.0, "high": 1.0}, "low=1.0, high=1.0: low must be below high"),
        ("GaussianMixture", {"means": [], "stds": []}, "one of each per component, at least one"),
        ("GaussianMixture", {"means": [0.0], "stds": [1.0, 2.0]}, "one of each per component"),
        ("GaussianMixture", {"means": [0.0], "stds": [1.0], "weights": [1.0, 1.0]}, "one of each per component"),
        ("GaussianMixture", {"means": [0.0], "stds": [-1.0]}, "stds=-1.0 in [-1.0]: a number above 0"),
        (
            "GaussianMixture",
            {"means": [0.0, 1.0], "stds": [1.0, 1.0], "weights": [2.0, -1.0]},
            "weights=[2.0, -1.0]: at least 0 each",
        ),
        ("GaussianMixture", {"means": [0.0], "stds": [1.0], "weights": [0.0]}, "not all 0"),
    ],
)
def test_wrong_settings_are_named(kind, settings, message):
    with pytest.raises(SettingError) as caught:
        getattr(distributions, kind)(**settings)
    assert message in str(caught.value)


def test_a_formula_is_arithmetic_of_x_and_nothing_else():
    distribution = distributions.Expression(cdf="0.5 + atan(x) / pi * 1.0", low=-1e4, high=1e4)  # Cauchy
    x = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(distribution.density(x), 1 / (torch.pi * (1 + x**2)))
    for cdf, message in {
        "__import__('os').system('true')": "not arithmetic|unknown name",
        "x.__class__": "not arithmetic",
        "open(x)": "not arithmetic",
        "y": "unknown name y; known are x, pi, e and",
        "exp(x, 2)": "exp takes exactly one argument",
        "1 +": "not a formula",
        "'a'": "not arithmetic",
        "9**9**9**9": "not finite and increasing",
        "x": "from -20 to 20",
        "1 - x": "not finite and increasing",
        "log(x)": "not finite and increasing",
    }.items():
        with pytest.raises(SettingError, match=message) as caught:
            distributions.Expression(cdf=cdf)
        assert str(caught.value).startswith(f"cdf={cdf}: ")
