"""Measures of samples beyond what their chapter shows: invariances, edges, bad input."""

import math
from decimal import Decimal, localcontext
from fractions import Fraction

import pytest
import torch

from genbook.images import scale_pixels
from genbook.judges.quality import (
    class_shares,
    frechet_distance,
    kernel_distance,
    kernel_interval,
    memorisation,
    precision_recall,
)
from genbook.measures import bootstrap

DISTANCES = [frechet_distance, kernel_distance]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def pair():
    x = torch.randn(60, 5, dtype=torch.float64) @ torch.randn(5, 5).double()
    return x, torch.randn(40, 5, dtype=torch.float64) + 0.5


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_are_symmetric_and_know_no_order_and_no_rotation(distance, pair):
    x, y = pair
    value = distance(x, y)
    assert isinstance(value, float)
    assert distance(y, x) == pytest.approx(value, rel=1e-9)
    assert distance(x.flip(0), y[torch.randperm(40)]) == pytest.approx(value, rel=1e-9)
    turn = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64)).Q
    assert distance(x @ turn, y @ turn) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_grow_with_a_shift(distance):
    x, y = torch.randn(2, 200, 4)
    values = [distance(x, y + shift) for shift in (0, 0.5, 1, 2)]
    assert values == sorted(values) and values[-1] > 10 * abs(values[0])


@pytest.mark.parametrize("distance", DISTANCES)
def test_half_precision_and_gradients_come_in(distance, pair):
    x, y = (some.to(torch.bfloat16) for some in pair)
    assert distance(x, y) == distance(x.double().requires_grad_(), y.double())


@pytest.mark.parametrize("shape", [(2, 1), (2, 30), (10, 30), (30, 30), (300, 4)])
def test_frechet_distance_of_a_sample_from_itself_is_zero(shape):
    x = 100 + 10 * torch.randn(shape)
    assert 0 <= frechet_distance(x, x) < 1e-9
    assert 0 <= frechet_distance(x, x.flip(0)) < 1e-9


def test_frechet_distance_ignores_a_common_shift_and_squares_a_common_scale(pair):
    x, y = pair
    value = frechet_distance(x, y)
    assert frechet_distance(x + 1e4, y + 1e4) == pytest.approx(value, rel=1e-9)
    assert frechet_distance(3 * x, 3 * y) == pytest.approx(9 * value, rel=1e-9)


def test_frechet_distance_of_a_shifted_or_stretched_copy(pair):
    x, _ = pair
    shift = torch.tensor([1.0, -2, 0, 0, 0.5]).double()
    assert frechet_distance(x, x + shift) == pytest.approx(5.25, rel=1e-9)
    centred = x - x.mean(0)
    assert frechet_distance(centred, 3 * centred) == pytest.approx(4 * x.T.cov().trace().item())


def test_frechet_distance_of_singular_covariances():
    """Two segments at a right angle: the covariances commute, and their product is zero."""
    along = torch.tensor([[-1.0, 0, 0], [1, 0, 0]])
    across = torch.tensor([[0.0, -2, 0], [0, 2, 0]])
    assert frechet_distance(along, across) == pytest.approx(2 + 8)
    assert frechet_distance(along, torch.zeros(5, 3)) == pytest.approx(2)
    padded = [torch.cat([some, torch.zeros(2, 50)], 1) for some in (along, across)]
    assert frechet_distance(*padded) == pytest.approx(2 + 8)


def test_frechet_distance_keeps_small_differences():
    """A root of a covariance's rounding error would hide them."""
    x = torch.randn(50, 20, dtype=torch.float64)
    shifted = x.clone()
    shifted[:, 0] += 1e-6
    assert frechet_distance(x, shifted) == pytest.approx(1e-12, rel=0.1)


def exact_moments(points):
    """Mean and covariance of points in the plane, in fractions."""
    points = [[Fraction(number) for number in point] for point in points.tolist()]
    mean = [sum(axis) / len(points) for axis in zip(*points)]
    apart = [(a - mean[0], b - mean[1]) for a, b in points]
    cov = [[sum(p[i] * p[j] for p in apart) / (len(apart) - 1) for j in (0, 1)] for i in (0, 1)]
    return mean, cov


def exact_frechet(x, y):
    """Of points in the plane, to fifty digits: there tr √M = √(tr M + 2 √det M)."""
    (mean_x, a), (mean_y, b) = exact_moments(x), exact_moments(y)
    trace = sum(a[i][j] * b[j][i] for i in (0, 1) for j in (0, 1))
    determinant = math.prod(m[0][0] * m[1][1] - m[0][1] * m[1][0] for m in (a, b))
    apart = sum((p - q) ** 2 for p, q in zip(mean_x, mean_y))
    apart += sum(m[i][i] for m in (a, b) for i in (0, 1))
    with localcontext(prec=50):
        apart, trace, determinant = (
            Decimal(f.numerator) / f.denominator for f in (apart, trace, determinant)
        )
        return float(apart - 2 * (trace + 2 * determinant.sqrt()).sqrt())


@pytest.mark.parametrize("narrow", [1, 1e-2, 1e-4, 1e-5, 1e-6, 1e-7, 0])
def test_frechet_distance_of_covariances_that_are_nearly_singular(narrow):
    """The root of a covariance's rounding error would be 1e-8, and the distance wrong by 1e-10."""
    turn = torch.tensor([[0.6, 0.8], [-0.8, 0.6]], dtype=torch.float64)
    x = torch.randn(20, 2, dtype=torch.float64) * torch.tensor([1, narrow]).double() @ turn
    for y in (torch.randn(30, 2, dtype=torch.float64) + 0.5, x[:12] * 1.1):
        assert frechet_distance(x, y) == pytest.approx(exact_frechet(x, y), rel=3e-12)


def test_kernel_distance_by_hand():
    x = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    y = torch.tensor([[2.0, 2.0], [0.0, 2.0], [0.0, 0.0]])
    # scalar products over d: x: 0; y: 2, 0, 0; between: 0 0 0, 2 0 0
    wanted = 1 + (27 + 1 + 1) / 3 - 2 * (5 + 27) / 6
    assert kernel_distance(x, y) == pytest.approx(wanted)


def test_kernel_distance_does_not_depend_on_how_it_is_cut():
    x, y = torch.randn(2300, 2).double(), torch.randn(1001, 2).double()
    kernels = [(a @ b.T / 2 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    own = [(k.sum() - k.trace()) / (len(k) * (len(k) - 1)) for k in kernels[:2]]
    assert kernel_distance(x, y) == pytest.approx(
        (own[0] + own[1] - 2 * kernels[2].mean()).item(), abs=1e-11
    )


@pytest.mark.parametrize("shape", [(4, 5, 1), (7, 40, 3), (1300, 1001, 2)])
def test_an_interval_of_the_kernel_distance_is_that_of_its_halves(shape):
    n, m, d = shape
    x, y = torch.randn(n, d), torch.randn(m, d) + 0.3
    wanted = bootstrap(kernel_distance, x, y, resamples=25, seed=3)
    assert kernel_interval(x, y, resamples=25, seed=3) == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    assert kernel_interval(x, y, resamples=25, seed=4)[1:] != pytest.approx(wanted[1:], rel=1e-6)


def test_an_interval_refuses_what_the_bootstrap_refuses():
    x = torch.randn(9, 2)
    for some, resamples, told in (
        (x[:3], 20, "at least 4 rows"),
        (x, 19, "resamples must be at least 20"),
        (x / 0, 20, "x must be finite"),
    ):
        with pytest.raises(ValueError, match=told):
            kernel_interval(some, x, resamples)


def test_precision_and_recall_at_their_ends():
    x = torch.randn(50, 3)
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x, x + 100) == (0, 0)
    assert precision_recall(x, x[:1].repeat(20, 1)) == (1, 1 / 50)  # copies of one: only itself
    assert precision_recall(x, x[:10], k=9)[0] == 1


def test_precision_and_recall_change_places_and_ignore_motions():
    x, y = torch.randn(60, 3).double(), 0.5 * torch.randn(1100, 3).double() + 0.5
    precision, recall = precision_recall(x, y)
    assert precision_recall(y, x) == (recall, precision)
    turn = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64)).Q
    moved = precision_recall(4 * x @ turn + 1, 4 * y @ turn + 1)
    assert moved == pytest.approx((precision, recall))
    more = precision_recall(x, y, k=10)
    assert more[0] >= precision and more[1] >= recall


@pytest.mark.parametrize("k", [0, -1, 4, 100])
def test_neighbours_are_fewer_than_points(k):
    with pytest.raises(ValueError, match=r"k must (lie in \[1, 3\]|be at least 1)"):
        precision_recall(torch.randn(4, 2), torch.randn(9, 2), k)


@pytest.mark.parametrize("measure", [*DISTANCES, precision_recall])
@pytest.mark.parametrize(
    "x, told",
    [
        (torch.zeros(1, 3), "x|real must hold at least 2 samples"),
        (torch.zeros(0, 3), "at least 2 samples"),
        (torch.zeros(5, 0), "1 feature"),
        (torch.zeros(5), r"floats of shape \(n, d\)"),
        (torch.zeros(5, 3, 2), r"floats of shape \(n, d\)"),
        (torch.zeros(5, 3, dtype=torch.long), "int64"),
        (torch.zeros(5, 4), "same features, got 4 and 3"),
        (torch.tensor([[0.0, 1.0, math.nan]] * 2), "must be finite, got 2"),
        (torch.tensor([[0.0, 1.0, math.inf]] * 2), "must be finite, got 2"),
    ],
)
def test_bad_features_are_refused(measure, x, told):
    good = torch.randn(8, 3)
    with pytest.raises(ValueError, match=told):
        measure(x, good)
    with pytest.raises(
        ValueError, match=told.replace("4 and 3", "3 and 4").replace("x|real", "y|fake")
    ):
        measure(good, x)


def test_class_shares():
    p = torch.eye(4)[[0, 0, 0, 2, 1, 0, 2, 2]]
    torch.testing.assert_close(class_shares(p), torch.tensor([4, 1, 3, 0]).double() / 8)
    torch.testing.assert_close(
        class_shares(torch.softmax(torch.randn(50, 7), 1)).sum(), torch.ones(()).double()
    )


@pytest.mark.parametrize(
    "p", [torch.randn(5, 3), torch.ones(5, 3), torch.ones(1, 1), torch.full((3, 2), math.nan)]
)
def test_scores_are_no_probabilities(p):
    with pytest.raises(ValueError, match="probabilities must"):
        class_shares(p)


def test_memorised_shares():
    levels = torch.randint(256, (90, 3, 8, 8), dtype=torch.uint8)
    train, test = levels[:60], levels[60:]
    assert memorisation(scale_pixels(test), train, test) == 0
    half = torch.cat([train[:30], test])
    assert memorisation(scale_pixels(half), train[:30], test) == 0.5
    assert memorisation(scale_pixels(train), train[:20], train[:20]) == 0.5  # ties
    shares = {memorisation(scale_pixels(train), train, test, seed=s) for s in (0, 0, 1, 2, 3)}
    assert 2 <= len(shares) <= 4 and all(0.5 <= share < 1 for share in shares)


def test_memorisation_is_not_fooled_by_rounding():
    """Images one level apart in one pixel are the hardest to tell from copies."""
    base = torch.randint(256, (40, 3, 8, 8), dtype=torch.uint8)
    close = base.clone()
    close[:, 0, 0, 0] ^= 1
    x = scale_pixels(base)
    assert memorisation(x, base, close) == 1
    assert memorisation(x, close, base) == 0


@pytest.mark.parametrize(
    "change, told",
    [
        ({"train": torch.zeros(5, 3, 4, 4)}, "train must hold uint8 images"),
        ({"test": torch.zeros(5, 3, 4, 5, dtype=torch.uint8)}, "test must hold uint8 images"),
        ({"test": torch.zeros(1, 3, 4, 4, dtype=torch.uint8)}, "test must hold at least 2 images"),
        ({"samples": torch.full((5, 3, 4, 4), math.nan)}, "samples must be finite"),
        ({"samples": torch.zeros(1, 3, 4, 4)}, "samples must hold at least 2"),
        ({"samples": torch.zeros(5, 3, 4, 4, dtype=torch.uint8)}, "samples must be floats"),
    ],
)
def test_bad_images_are_refused(change, told):
    images = torch.zeros(6, 3, 4, 4, dtype=torch.uint8)
    good = {"samples": torch.zeros(4, 3, 4, 4), "train": images, "test": images}
    with pytest.raises(ValueError, match=told):
        memorisation(**{**good, **change})


def test_intervals_come_from_the_seed_and_leave_chance_alone(pair):
    x, y = pair
    state = torch.get_rng_state()
    first = bootstrap(frechet_distance, x, y, resamples=30)
    assert torch.equal(state, torch.get_rng_state())
    assert first == bootstrap(frechet_distance, x, y, resamples=30)
    assert first[1:] != bootstrap(frechet_distance, x, y, resamples=30, seed=1)[1:]
    assert first[0] == frechet_distance(x, y) and first[1] < first[2]


def test_interval_of_a_mean_is_the_known_one():
    x = torch.randn(400, dtype=torch.float64)
    value, low, high = bootstrap(lambda some: some.mean().item(), x, resamples=2000)
    error = x.std().item() / 20
    assert value == pytest.approx(x.mean().item())
    assert low == pytest.approx(value - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(value + 1.96 * error, abs=0.2 * error)


def test_bad_resampling_is_refused():
    x = torch.randn(10, 2)
    with pytest.raises(ValueError, match=r"at least 4 rows each, got \[10, 3\]"):
        bootstrap(frechet_distance, x, x[:3])
    with pytest.raises(ValueError, match=r"at least 4 rows each, got \[\]"):
        bootstrap(lambda: 0.0)
    with pytest.raises(ValueError, match="resamples must be at least 20, got 5"):
        bootstrap(frechet_distance, x, x, resamples=5)
    with pytest.raises(ValueError, match="statistic must be finite"):
        bootstrap(lambda some: math.nan, x)
