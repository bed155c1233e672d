"""Sets of features: halves, merging, noise floor, bootstrap, cache, and the bias of small sets."""

import os

import numpy as np
import pytest
import torch

from sweettok.data.lists import ClipList
from sweettok.eval import frechet_distance
from sweettok.eval.cache import RealCache
from sweettok.eval.checks import PixelCheck
from sweettok.eval.protocol import PRESETS
from sweettok.eval.sets import FeatureSet, keeps_features, measure

EXACT = PRESETS["exact"]


def features(seed, count, width=8, shift=0.0):
    return torch.from_numpy(np.random.RandomState(seed).randn(count, width) + shift)


def filled(rows, keep=False, seed=0, numbers=None):
    numbers = list(range(len(rows))) if numbers is None else numbers
    made = FeatureSet(seed, keep)
    made.update(rows, numbers, [f"clip{number}" for number in numbers])
    return made


def test_halves_are_even_fixed_lots():
    lots = [FeatureSet(seed=3).half(index) for index in range(1000)]
    assert all({lots[i], lots[i + 1]} == {0, 1} for i in range(0, 1000, 2))
    assert 200 < sum(lots[::2]) < 300  # first of the pair or second, by chance
    assert lots != [FeatureSet(seed=4).half(index) for index in range(1000)]


@pytest.mark.parametrize("keep", [False, True])
def test_parts_in_any_split_merge_into_the_whole(keep):
    rows, other = features(0, 61), filled(features(1, 50, shift=0.5), keep)
    whole = measure(filled(rows, keep), other, EXACT)
    for world in (2, 3, 7):
        parts = [filled(rows[rank::world], keep, numbers=list(range(61))[rank::world]) for rank in range(world)]
        merged = parts[0]
        for part in parts[1:]:
            merged = merged.merge(part)
        found = measure(merged, other, EXACT)
        assert merged.count == 61 and found["value"] == pytest.approx(whole["value"], rel=1e-10)
        assert found["noise_floor"] == pytest.approx(whole["noise_floor"], rel=1e-10)


def test_value_and_noise_floor():
    real, fake = features(0, 100), features(1, 100, shift=1)
    a, b = filled(real, keep=True), filled(fake, keep=True)
    found = measure(a, b, EXACT)
    first = torch.tensor([a.half(index) == 0 for index in range(100)])
    assert found["value"] == pytest.approx(frechet_distance(real, fake))
    assert found["noise_floor"] == {
        "real_to_real": pytest.approx(frechet_distance(real[first], real[~first])),
        "real_to_fake": pytest.approx(frechet_distance(real[first], fake[~first])),
        "num_clips": 50,
    }
    assert measure(filled(real[:3]), filled(fake[:3]), EXACT)["noise_floor"] is None


def test_settings_of_the_protocol_count():
    real, fake = filled(features(0, 30)), filled(features(1, 30))
    distances = {ddof: measure(real, fake, EXACT.filled(ddof=ddof))["value"] for ddof in (0, 1)}
    assert distances[0] < distances[1]
    assert measure(real, fake, EXACT.filled(root="sqrtm"))["value"] == pytest.approx(distances[1], abs=1e-6)


def test_bootstrap():
    real, fake = features(0, 200), features(1, 200, shift=1)
    a, b = filled(real, keep=True), filled(fake, keep=True)
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
    """Percentiles of at least 20 redrawn distances are not negative, as `value - 1.96 deviations` can be."""
    a = filled(features(0, 4), keep=True)
    for repeats in (1, 19, -1):
        with pytest.raises(ValueError, match=f"bootstrap must be 0 .no interval., or at least 20 .*got {repeats}"):
            measure(a, a, EXACT, bootstrap=repeats)
    found = measure(a, a, EXACT, bootstrap=20)
    low, high = found["bootstrap"]["interval95"]
    assert found["value"] - 1.96 * found["bootstrap"]["std"] < 0
    assert 0 < low <= found["bootstrap"]["mean"] <= high


def test_broken_features_name_their_clips():
    rows = features(0, 4)
    rows[2, 5] = torch.nan
    with pytest.raises(ValueError, match="features are not finite of 1 clips:\n  clip2"):
        filled(rows)


def test_which_sets_keep_features():
    assert not keeps_features(EXACT, 400, 400, 0) and keeps_features(EXACT, 399, 400, 0)
    assert keeps_features(EXACT, 5000, 400, 10) and keeps_features(PRESETS["tats-128"], 5000, 400, 0)


@pytest.mark.parametrize("keep", [False, True])
def test_cache_finds_what_it_kept_and_nothing_else(tmp_path, keep, monkeypatch):
    video = tmp_path / "a.mkv"
    video.write_bytes(b"video")
    clips = ClipList((video,), None, None, ("a",))
    kept, check = filled(features(0, 20), keep), PixelCheck()
    check.update(torch.full((1, 2, 4, 4, 3), 7, dtype=torch.uint8))

    def cache(protocol=EXACT, folder=tmp_path / "cache", keep=keep):
        return RealCache(folder, protocol, clips, keep)

    store = cache()
    assert store.find() is None
    store.keep(kept, check)
    found, again = cache(EXACT.filled(name="x", root="sqrtm")).find()
    other = filled(features(1, 20), keep)
    assert measure(found, other, EXACT) == measure(kept, other, EXACT) and again.summary() == check.summary()
    for changed in (EXACT.filled(stride=2), EXACT.filled(detector_file="b"), EXACT.filled(real_list="c")):
        assert cache(changed).find() is None
    assert cache(keep=not keep).find() is None
    with monkeypatch.context() as patch:
        patch.setattr("sweettok.eval.cache.version", lambda name: "0")
        assert cache().find() is None
    store.path.write_bytes(store.path.read_bytes()[:100])
    assert cache().find() is None  # damaged
    nowhere = cache(folder=None)
    nowhere.keep(kept, check)
    assert nowhere.find() is None


def test_cache_sees_other_contents_of_the_same_size(tmp_path):
    """Also where the time of the change is set back, as copying tools do; and files that were moved are the same."""
    video = tmp_path / "a.mkv"
    video.write_bytes(b"one")
    clips, check = ClipList((video,), None, None, ("a",)), PixelCheck()
    check.update(torch.zeros(1, 2, 4, 4, 3, dtype=torch.uint8))
    store = RealCache(tmp_path / "cache", EXACT, clips, False)
    assert store.find() is None
    store.keep(filled(features(0, 20)), check)
    assert RealCache(tmp_path / "cache", EXACT, clips, False).find() is not None
    before = video.stat()
    video.write_bytes(b"two")
    os.utime(video, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert RealCache(tmp_path / "cache", EXACT, clips, False).find() is None
    video.unlink()
    (tmp_path / "b.mkv").write_bytes(b"one")
    moved = ClipList((tmp_path / "b.mkv",), None, None, ("a",))
    assert RealCache(tmp_path / "cache", EXACT, moved, False).find() is not None


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
