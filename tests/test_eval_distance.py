"""Distances of sets: halves, noise floor, bootstrap, the cache of real clips, and the bias of small sets."""

import os

import numpy as np
import pytest
import torch

from sweettok.data.lists import ClipList
from sweettok.eval import frechet_distance
from sweettok.eval.cache import RealCache
from sweettok.eval.distance import half, measure
from sweettok.eval.pipeline import Options
from sweettok.eval.protocol import PRESETS

EXACT = PRESETS["exact"]


def features(seed, count, width=8, shift=0.0):
    return torch.from_numpy(np.random.RandomState(seed).randn(count, width) + shift)


def test_halves_are_even_and_fixed():
    first = half(1000, seed=3)
    assert (first[::2] != first[1::2]).all()  # of each pair of neighbours one
    assert 200 < first[::2].sum() < 300  # the first or the second by chance
    assert torch.equal(first, half(1000, seed=3)) and not torch.equal(first, half(1000, seed=4))


def test_value_and_noise_floor():
    real, fake = features(0, 100), features(1, 100, shift=1)
    found = measure(real, fake, EXACT)
    first = half(100, EXACT.seed)
    assert found["value"] == pytest.approx(frechet_distance(real, fake))
    assert found["noise_floor"] == {
        "real_to_real": pytest.approx(frechet_distance(real[first], real[~first])),
        "real_to_fake": pytest.approx(frechet_distance(real[first], fake[~first])),
        "num_clips": 50,
    }
    assert measure(real[:3], fake[:3], EXACT)["noise_floor"] is None


def test_settings_of_the_protocol_count():
    real, fake = features(0, 30), features(1, 30)
    distances = {ddof: measure(real, fake, EXACT.filled(ddof=ddof))["value"] for ddof in (0, 1)}
    assert distances[0] < distances[1]
    assert measure(real, fake, EXACT.filled(root="sqrtm"))["value"] == pytest.approx(distances[1], abs=1e-6)


def test_bootstrap():
    a, b = features(0, 200), features(1, 200, shift=1)
    found = measure(a, b, EXACT, bootstrap=40)
    low, high = found["bootstrap"]["interval95"]
    assert low < found["value"] < high and 0 < found["bootstrap"]["std"] < 2
    assert found["bootstrap"]["method"] == "95% percentile bootstrap interval"
    assert measure(a, b, EXACT, bootstrap=40) == found
    assert measure(a, b, EXACT.filled(seed=1), bootstrap=40)["bootstrap"] != found["bootstrap"]
    same = EXACT.filled(paired=True)  # equal pairs stay equal when the same clips are drawn
    paired, unpaired = (measure(a, a, p, bootstrap=20)["bootstrap"]["std"] for p in (same, same.filled(paired=False)))
    assert paired < 1e-9 < unpaired


def test_bootstrap_intervals_are_of_distances():
    """Percentiles of at least 20 resampled distances are not negative, as `value - 1.96 deviations` can be."""
    a = features(0, 4)
    for repeats in (1, 19, -1):
        with pytest.raises(ValueError, match=f"bootstrap must be 0 .no interval., or at least 20 .*got {repeats}"):
            Options(bootstrap=repeats)
    found = measure(a, a, EXACT, bootstrap=20)
    low, high = found["bootstrap"]["interval95"]
    assert found["value"] - 1.96 * found["bootstrap"]["std"] < 0
    assert 0 < low <= found["bootstrap"]["mean"] <= high


@pytest.fixture
def cache(tmp_path):
    """A function that opens the cache of one file, and what it keeps."""
    (tmp_path / "a.mkv").write_bytes(b"one")
    kept = [{"real_features": np.random.RandomState(0).randn(8), "real_pixels": {"min": 7, "sum": [1, 2.5]}}]

    def open_cache(protocol=EXACT, folder=tmp_path / "cache", name="a.mkv"):
        return RealCache(folder, protocol, ClipList((tmp_path / name,), None, None, ("a",)))

    store = open_cache()
    assert store.find() is None
    store.keep(kept)
    return open_cache, kept, store.path


def test_cache_finds_what_it_kept_and_nothing_else(cache, monkeypatch):
    open_cache, kept, path = cache
    (found,) = open_cache(EXACT.filled(name="x", root="sqrtm")).find()
    np.testing.assert_array_equal(found["real_features"], kept[0]["real_features"])
    assert found["real_pixels"] == kept[0]["real_pixels"]
    for changed in (EXACT.filled(stride=2), EXACT.filled(detector_file="b"), EXACT.filled(real_list="c")):
        assert open_cache(changed).find() is None
    with monkeypatch.context() as patch:
        patch.setattr("sweettok.eval.cache.version", lambda name: "0")
        assert open_cache().find() is None
    path.write_bytes(path.read_bytes()[:100])
    assert open_cache().find() is None  # damaged
    nowhere = open_cache(folder=None)
    nowhere.keep(kept)
    assert nowhere.find() is None


def test_cache_sees_other_contents_of_the_same_size(cache, tmp_path):
    """Also where the time of the change is set back, as copying tools do; and files that were moved are the same."""
    open_cache, *_ = cache
    assert open_cache().find() is not None
    video = tmp_path / "a.mkv"
    before = video.stat()
    video.write_bytes(b"two")
    os.utime(video, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert open_cache().find() is None
    (tmp_path / "b.mkv").write_bytes(b"one")
    assert open_cache(name="b.mkv").find() is not None


def test_the_bias_of_small_sets():
    """Two samples of one 400-wide Gaussian, true distance 0, trace 400, spectrum decaying exponentially: far apart by
    chance at 64 samples, less at 473 (the share of one of 8 processes in 3,783 clips), hardly at 2,048."""
    spectrum = np.exp(-np.arange(400) / 50)
    deviations = np.sqrt(spectrum / spectrum.sum() * 400)

    def distance(count):
        rows = [torch.from_numpy(np.random.RandomState(seed).randn(count, 400) * deviations) for seed in (0, 1)]
        return frechet_distance(*rows)

    found = {count: distance(count) for count in (64, 473, 2048)}
    assert found == {count: pytest.approx(value, rel=0.05) for count, value in {64: 336, 473: 60, 2048: 14}.items()}
