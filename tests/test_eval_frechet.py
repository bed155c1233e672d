"""Frechet distances: closed forms, invariances, and the golden numbers."""

import numpy as np
import pytest
import torch

from sweettok.eval import FeatureStats, frechet_distance


def sample(seed, count, width=400, scale=1.0, shift=0.0):
    return np.random.RandomState(seed).randn(count, width) * scale + shift


def stats(*batches):
    result = FeatureStats()
    for batch in batches:
        result.update(torch.as_tensor(batch))
    return result


def with_moments(mean, deviations, count=64):
    """Samples whose mean and (uncorrelated) sample deviations are exactly these."""
    raw = np.random.RandomState(0).randn(count, len(mean))
    basis = np.linalg.qr(raw - raw.mean(0))[0]
    return basis * np.sqrt(count - 1) * np.array(deviations) + np.array(mean)


@pytest.mark.parametrize("settings", [{}, {"root": "sqrtm"}, {"dtype": "float32"}])
@pytest.mark.parametrize("as_stats", [False, True])
def test_closed_form(settings, as_stats):
    a = with_moments([0.0, 1, 2], [1.0, 2, 3])
    b = with_moments([1.0, 1, 0], [2.0, 2, 1])
    expected = (1 + 0 + 4) + (1 + 0 + 4)  # squared differences of means and of deviations
    sides = (stats(a), stats(b)) if as_stats else (a, b)
    assert frechet_distance(*sides, **settings) == pytest.approx(expected, abs=1e-4 if "dtype" in settings else 1e-7)


def test_divisor():
    a, b = with_moments([0.0], [1.0], count=5), with_moments([0.0], [3.0], count=5)
    assert frechet_distance(a, b) == pytest.approx(4)
    assert frechet_distance(a, b, ddof=0) == pytest.approx(4 * 4 / 5)


def test_parts_merge_into_the_whole():
    a, b = sample(1, 37, 12), sample(2, 50, 12, shift=1)
    whole = frechet_distance(a, b)
    one, two, rest = stats(a[:1]), stats(a[1:20]), stats(a[20:30], a[30:])
    kept = one.mean.clone()
    merged = FeatureStats().merge(one).merge(two).merge(rest)
    assert merged.count == 37 and torch.equal(one.mean, kept)
    assert frechet_distance(merged, stats(b)) == pytest.approx(whole, rel=1e-10)
    assert frechet_distance(merged, b) == pytest.approx(whole, rel=1e-10)
    assert merged.merge(FeatureStats()).count == 37


def test_merging_keeps_small_deviations_of_large_values():
    """Sums of squares would lose them: 1e6 squared leaves 4 digits for a deviation of 1."""
    a, b = sample(1, 40, 6, shift=1e6), sample(2, 40, 6, shift=1e6)
    parts = stats(a[:7]).merge(stats(a[7:8])).merge(stats(a[8:]))
    torch.testing.assert_close(parts.covariance(), torch.from_numpy(np.cov(a.T)), rtol=1e-9, atol=1e-9)
    assert frechet_distance(parts, stats(b)) == pytest.approx(frechet_distance(a, b), rel=1e-6)


def test_inputs_are_left_alone_and_a_second_call_agrees():
    a, b = torch.from_numpy(sample(1, 16, 8)), torch.from_numpy(sample(2, 16, 8))
    before = a.clone(), b.clone()
    for settings in ({}, {"root": "sqrtm"}, {"dtype": "float32"}):
        assert frechet_distance(a, b, **settings) == frechet_distance(a, b, **settings)
    assert torch.equal(a, before[0]) and torch.equal(b, before[1])


@pytest.mark.parametrize(
    ("real", "fake", "settings", "message"),
    [
        (sample(0, 1, 4), sample(1, 3, 4), {}, "at least 2 samples per side, got 1 real"),
        (sample(0, 3, 4), FeatureStats(), {}, "at least 2 samples per side, got 0 fake"),
        (sample(0, 3, 4), sample(1, 3, 5), {}, "real features are 4 wide and fake features 5"),
        (sample(0, 3, 4)[0], sample(1, 3, 4), {}, "real features must be a float matrix"),
        (np.full((3, 4), np.nan), sample(1, 3, 4), {}, "real features hold values that are not finite"),
        (sample(0, 3, 4), sample(1, 3, 4), {"ddof": 2}, "ddof must be 0 or 1"),
        (sample(0, 3, 4), sample(1, 3, 4), {"root": "eigh"}, "root svd or sqrtm"),
        (sample(0, 3, 4), sample(1, 3, 4), {"root": "sqrtm", "dtype": "float32"}, "float32 with root svd"),
    ],
)
def test_bad_input(real, fake, settings, message):
    with pytest.raises(ValueError, match=message):
        frechet_distance(real, fake, **settings)


def test_stats_refuse_another_width():
    with pytest.raises(ValueError, match="features are 5 wide, those before were 4"):
        stats(sample(0, 3, 4), sample(0, 3, 5))


def test_more_samples_bring_less_bias():
    """Two samples of one distribution are apart by chance alone, and by less the more there are."""
    distances = [frechet_distance(stats(sample(1, n, 40)), stats(sample(2, n, 40))) for n in (8, 32, 128, 512)]
    assert distances[0] > 2 * distances[1] > 4 * distances[2] > 8 * distances[3] > 0


def test_unequal_counts():
    """The exact value is known; matrices and statistics must both give it."""
    a, b = sample(7, 100), sample(8, 256, scale=1.1, shift=0.2)
    exact = 500.1191725957637
    assert frechet_distance(a, b) == pytest.approx(exact, rel=1e-9)
    assert frechet_distance(stats(a), stats(b[:100], b[100:])) == pytest.approx(exact, rel=1e-9)


# ------------------------------------------------------------------------------------------------- golden numbers


@pytest.fixture(scope="module")
def golden(golden_folder):
    with np.load(golden_folder / "fvd.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("count", [16, 256, 2048])
def test_golden_distances(golden, count):
    a, b = sample(7, count), sample(8, count, scale=1.1, shift=0.2)

    def value(name):
        return float(golden[f"fd_n{count}_{name}"])

    as_stats = (stats(b), stats(a))
    assert frechet_distance(b, a) == pytest.approx(value("exact_f64_ddof1"), rel=1e-9)
    assert frechet_distance(*as_stats, ddof=0) == pytest.approx(value("exact_f64_ddof0"), rel=1e-9)
    assert frechet_distance(*as_stats, root="sqrtm") == pytest.approx(value("styleganv_f64"), abs=2e-4)
    rounded = [x.astype(np.float32) for x in (b, a)]
    tolerance = 0.1 if count == 16 else 0.03
    assert frechet_distance(*rounded, dtype="float32") == pytest.approx(value("omni_f32"), abs=tolerance)
    assert frechet_distance(*rounded, ddof=0) == pytest.approx(value("larp_N_f64"), rel=1e-9)
    assert frechet_distance(a, a.copy()) == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize("count", [16, 256])
def test_golden_distance_by_sqrtm_of_streamed_features(golden, count):
    sides = [stats(x.astype(np.float32)) for x in (sample(8, count, scale=1.1, shift=0.2), sample(7, count))]
    expected = float(golden[f"fd_n{count}_cdfvd_N_f64"])
    assert frechet_distance(*sides, ddof=0, root="sqrtm") == pytest.approx(expected, abs=2e-4)


def test_golden_distance_of_logits(golden):
    real, fake = golden["logits_real"], golden["logits_fake"]
    for sides in ((real, fake), (stats(real), stats(fake))):
        assert frechet_distance(*sides) == pytest.approx(float(golden["fd_e2e_omni_path_exact_f64_ddof1"]), rel=1e-9)
    assert frechet_distance(real, fake, dtype="float32") == pytest.approx(
        float(golden["fd_e2e_omni_path_omni_f32"]), abs=0.03
    )
    lowered = golden["logits_real_after_rfvd_bytes"]
    exact = float(golden["fd_e2e_rfvd_byte_effect_exact_f64_ddof1"])
    assert frechet_distance(real, lowered) == pytest.approx(exact, rel=1e-9)
