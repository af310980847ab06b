"""Each distribution: its CDF, inverse, density and samples are those of one and the same distribution."""

import numpy as np
import pytest
import torch

from gancli import distributions
from gancli.datasets.points import Distribution1d
from gancli.device import seeded
from gancli.metrics.base import Samples
from gancli.metrics.modes import Line

SAMPLES = [-1.0, 0.0, 0.25, 0.5, 2.0, 5.0]
CASES = {
    "Normal": {"mean": -2.0, "std": 0.5},
    "Exponential": {"rate": 3.0},
    "Uniform": {"low": -1.0, "high": 4.0},
    "GaussianMixture": {"means": [-2.0, 0.0, 3.0], "stds": [0.3, 1.0, 0.5], "weights": [1.0, 2.0, 5.0]},
    "Expression": {"cdf": "1 - exp(-x**2)", "low": 0.0, "high": 6.0},
    "Table": {},
}


def walk(kind):
    for child in kind.__subclasses__():
        if child.__module__ == distributions.__name__:
            yield child
        yield from walk(child)


KINDS = sorted(walk(distributions.Distribution), key=lambda kind: kind.__name__)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def distribution(request, tmp_path):
    settings = dict(CASES[request.param.__name__])  # a new distribution needs a case above
    if request.param is distributions.Table:
        file = tmp_path / "samples.txt"
        file.write_text("\n".join(map(str, SAMPLES)))
        settings["path"] = str(file)
    return request.param(**settings)


def test_every_law_is_walked():
    assert {kind.__name__ for kind in KINDS} >= set(CASES)


def test_round_trip(distribution):
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
    share = distribution.cdf(samples.sort().values)
    steps = torch.arange(count + 1, dtype=torch.float64) / count
    distance = torch.maximum((share - steps[:-1]).abs().max(), (share - steps[1:]).abs().max())
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


def test_ends(distribution):
    ends = distribution.inverse_cdf(torch.tensor([0.0, 1.0]))
    assert torch.isfinite(ends).all() and ends[0] < ends[1]
    assert torch.isfinite(distribution.density(ends)).all()
    far = torch.tensor([-1e6, 1e6])
    assert distribution.cdf(far).tolist() == [0.0, 1.0]
    assert distribution.density(far).tolist() == [0.0, 0.0]


def test_any_shape_and_stride(distribution):
    u = torch.linspace(0.05, 0.95, 12, dtype=torch.float64)
    for shaped in (u.view(3, 4), u.view(3, 4).T, u.view(4, 3)[:, 1]):
        x = distribution.inverse_cdf(shaped)
        assert x.shape == shaped.shape
        assert (distribution.cdf(x) - shaped).abs().max() < 1e-10
        strided = torch.stack([x, x], dim=-1)[..., 0]  # a column of a wider tensor
        assert torch.equal(distribution.density(strided), distribution.density(strided.contiguous()))


def test_table_text_and_npy_agree(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(map(str, SAMPLES)))
    np.save(tmp_path / "a.npy", np.array(SAMPLES)[:, None])
    text, binary = (distributions.Table(path=str(tmp_path / name)) for name in ("a.txt", "a.npy"))
    assert text.x.tolist() == binary.x.tolist() == SAMPLES
    u = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert text.inverse_cdf(u).tolist() == pytest.approx(np.quantile(SAMPLES, u.numpy()).tolist())  # definition 7 too


@pytest.mark.parametrize("place", ["low", "middle", "high"])
def test_equal_samples_keep_their_probability(tmp_path, place):
    ties, rest = np.full(900, {"low": 0.0, "middle": 0.5004, "high": 1.0}[place]), np.linspace(0.001, 0.999, 100)
    np.save(tmp_path / "a.npy", np.concatenate([ties, rest]))
    distribution = distributions.Table(path=str(tmp_path / "a.npy"))
    u = torch.linspace(0, 1, 1001, dtype=torch.float64)
    x = distribution.inverse_cdf(u)
    assert (x.diff() >= 0).all() and float((x == float(np.float32(ties[0]))).double().mean()) == pytest.approx(
        0.9, abs=2e-3
    )
    jump = distribution.cdf(torch.tensor([ties[0] - 1e-6, ties[0] + 1e-6], dtype=torch.float64)).diff()
    assert float(jump) == pytest.approx(0.9, abs=2e-3)
    assert torch.isfinite(distribution.density(x)).all()
    samples = distribution.sample(20_000, seeded("ties"))[:, None]
    assert Line()(Samples(samples), None, Distribution1d(distribution=distribution))["ks"] < 0.0115, (
        "jumps are compared with jumps"
    )


def test_table_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.txt").write_text("1\n2\n")
    assert distributions.Table(path="~/a.txt").x.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("name", "content", "says"),
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
def test_bad_tables(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=says) as caught:
        distributions.Table(path=str(path))
    assert f"path={path}" in str(caught.value)


def test_missing_table(tmp_path):
    with pytest.raises(ValueError, match=r"path=.*none\.txt: not readable"):
        distributions.Table(path=str(tmp_path / "none.txt"))


def test_mixture_weights():
    distribution = distributions.GaussianMixture(means=[-10.0, 10.0], stds=[1.0, 1.0], weights=[1.0, 3.0])
    assert distribution.weights.tolist() == [0.25, 0.75]
    assert float(distribution.cdf(torch.tensor(0.0))) == pytest.approx(0.25)
    assert float((distribution.sample(4000, seeded(1)) > 0).float().mean()) == pytest.approx(0.75, abs=0.02)
    assert distributions.GaussianMixture(means=[0.0, 1.0], stds=[1.0, 1.0]).weights.tolist() == [0.5, 0.5]
    lone = distributions.GaussianMixture(means=[0.0, 9.0], stds=[1.0, 1.0], weights=[1.0, 0.0])
    assert float(lone.inverse_cdf(torch.tensor(0.5))) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("kind", "settings", "says"),
    [
        ("Normal", {"std": 0.0}, "std=0.0: must be above 0"),
        ("Normal", {"std": float("nan")}, "std=nan: must be above 0"),
        ("Exponential", {"rate": -1.0}, "rate=-1.0: must be above 0"),
        ("Uniform", {"low": 1.0, "high": 1.0}, "low=1.0, high=1.0: low must be below high"),
        ("GaussianMixture", {"means": [], "stds": []}, "as many of each, at least one"),
        ("GaussianMixture", {"means": [0.0], "stds": [1.0, 2.0]}, "as many of each"),
        ("GaussianMixture", {"means": [0.0], "stds": [1.0], "weights": [1.0, 1.0]}, "as many of each"),
        ("GaussianMixture", {"means": [0.0], "stds": [-1.0]}, "stds=-1.0: must be above 0"),
        ("GaussianMixture", {"means": [0.0, 1.0], "stds": [1.0, 1.0], "weights": [2.0, -1.0]}, "shares of 0 or more"),
        ("GaussianMixture", {"means": [0.0], "stds": [1.0], "weights": [0.0]}, "not all 0"),
    ],
)
def test_bad_values(kind, settings, says):
    with pytest.raises(ValueError) as caught:
        getattr(distributions, kind)(**settings)
    assert says in str(caught.value)


def test_a_formula_is_arithmetic_and_nothing_else():
    distribution = distributions.Expression(cdf="0.5 + atan(x) / pi * 1.0", low=-1e4, high=1e4)  # Cauchy's
    at = torch.tensor([-1.0, 0.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(distribution.density(at), 1 / (torch.pi * (1 + at**2)))
    for cdf, text in {
        "__import__('os').system('true')": "no arithmetic|knows no",
        "x.__class__": "no arithmetic",
        "open(x)": "no arithmetic",
        "y": "knows no y",
        "exp(x, 2)": "other than one argument",
        "1 +": "not a formula",
        "'a'": "no arithmetic",
        "9**9**9**9": "does not rise",
        "x": "from -20 to 20",
        "1 - x": "does not rise",
        "log(x)": "does not rise",
    }.items():
        with pytest.raises(ValueError, match=text):
            distributions.Expression(cdf=cdf)
