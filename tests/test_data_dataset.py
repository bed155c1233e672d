"""Datasets and samplers: the same clips in the same order for any number of processes, and after a resume."""

from itertools import islice

import pytest
import torch

from sweettok.data import dataset as dataset_module
from sweettok.data.backends import ClipError
from sweettok.data.dataset import ClipDataset, GlobalBatchSampler, make_eval_loader, make_loader, plain_errors
from sweettok.data.lists import load_clips
from sweettok.data.reader import read_clip
from sweettok.data.writer import write_png, write_video

FRAMES = 12


def numbered(clip: int) -> torch.Tensor:
    """A clip whose red is 4 times the frame's place, green the column, and blue the clip's number."""
    video = torch.arange(FRAMES, dtype=torch.uint8).mul(4)[None, :, None, None].expand(3, -1, 16, 16).clone()
    video[1] = torch.arange(16)
    video[2] = 10 * clip
    return video


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    for number in range(5):
        write_video(folder / "ab"[number % 2] / f"{number}.mkv", numbered(number), 10, lossless=True)
    return load_clips(folder)


def start_of(video: torch.Tensor) -> int:
    """The place of a clip's first frame in its video."""
    return int(video[0, 0, 0, 0]) // 4


def test_items(clips):
    item = ClipDataset(clips, 5, (8, 10), position="first")[1]
    assert item["video"].shape == (3, 5, 8, 10) and item["video"].dtype == torch.uint8
    assert item["key"] == clips.keys[1] and item["label"] == clips.labels[1] and isinstance(item["label"], int)
    assert item["video"][0, :, 0, 0].tolist() == [0, 4, 8, 12, 16]
    unlabelled = load_clips(clips.paths[0].parent)
    assert ClipDataset(unlabelled, 5, 8)[0]["label"] == -1


def test_random_starts_depend_on_seed_epoch_and_index_alone(clips):
    def draw(seed):
        dataset = ClipDataset(clips, 3, 8, position="random", seed=seed)
        return [start_of(dataset[epoch, index]["video"]) for epoch in range(6) for index in range(5)]

    first = draw(0)
    torch.manual_seed(1)
    assert draw(0) == first
    assert draw(1) != first
    assert set(first) <= set(range(FRAMES - 2)) and len(set(first)) > 6
    dataset = ClipDataset(clips, 3, 8, position="random")
    assert start_of(dataset[0, 3]["video"]) == start_of(dataset[3]["video"])


def test_views_follow_each_other(clips, monkeypatch):
    """Two parts, 0 and 8 of 12 frames, each as it is and mirrored; a mirrored view costs no second reading."""
    calls = []

    def counted(*arguments, **options):
        calls.append(options["part"])
        return read_clip(*arguments, **options)

    monkeypatch.setattr(dataset_module, "read_clip", counted)
    dataset = ClipDataset(clips, 4, (16, 10), position="even", clips_per_video=2, flips=True)
    assert len(dataset) == 20
    for row in range(20):
        plain = read_clip(clips.paths[row // 4], 4, (16, 10), start=8 * (row // 2 % 2))
        item = dataset[row]
        assert torch.equal(item["video"], plain.flip(3) if row % 2 else plain)
        assert (item["key"], item["label"]) == (clips.keys[row // 4], clips.labels[row // 4])
    assert calls == 5 * [(0, 2), (1, 2)]
    assert len(ClipDataset(clips, 4, 8, position="even", clips_per_video=3)) == 15
    with pytest.raises(ValueError, match="part must be"):
        ClipDataset(clips, 4, 8, clips_per_video=2)[0]


def test_random_single_frames_and_images(clips, tmp_path):
    dataset = ClipDataset(clips, 1, 16, position="random")
    frames = {start_of(dataset[epoch, 0]["video"]) for epoch in range(30)}
    assert len(frames) > 6 and dataset[0]["video"].shape == (3, 1, 16, 16)
    write_png(tmp_path / "image.png", numbered(2)[:, 7])
    write_video(tmp_path / "clip.mkv", numbered(1), 10, lossless=True)
    (tmp_path / "list.txt").write_text("clip.mkv\nimage.png\n")
    mixed = load_clips(tmp_path / "list.txt")
    images = ClipDataset(mixed, 1, 16, position="random")
    assert torch.equal(images[1]["video"], numbered(2)[:, 7:8])
    assert images[0]["video"].shape == (3, 1, 16, 16)
    with pytest.raises(ClipError, match="image.png: a still image cannot give 3 frames"):
        ClipDataset(mixed, 3, 16)[1]


def test_the_order_does_not_depend_on_the_layout():
    def stream(world, micro, batches=9):
        ranks = [iter(GlobalBatchSampler(10, 12, rank, world, micro, seed=3)) for rank in range(world)]
        shares = 12 // world // micro
        return [sum((sum(islice(rank, shares), []) for rank in ranks), []) for _ in range(batches)]

    whole = stream(1, 12)
    for world, micro in ((1, 4), (2, 3), (3, 2), (4, 3), (12, 1)):
        assert stream(world, micro) == whole
    flat = sum(whole, [])
    for epoch in range(10):  # every epoch holds every item once, in an order of its own
        assert sorted(flat[10 * epoch : 10 * epoch + 10]) == [(epoch, item) for item in range(10)]
    orders = {tuple(item for _, item in flat[10 * epoch : 10 * epoch + 10]) for epoch in range(10)}
    assert len(orders) == 10
    assert sum(islice(iter(GlobalBatchSampler(10, 12, 0, 1, 12, seed=4)), 9), []) != flat


def test_lists_shorter_than_a_batch_and_unshuffled():
    batches = islice(iter(GlobalBatchSampler(3, 8, 0, 1, 4, seed=0, shuffle=False)), 4)
    assert sum(batches, []) == [(place // 3, place % 3) for place in range(16)]


def test_resuming_continues_the_order():
    sampler = GlobalBatchSampler(7, 4, 0, 1, 2, seed=1)
    straight = list(islice(iter(sampler), 20))
    sampler.advance(3)
    resumed = GlobalBatchSampler(7, 4, 0, 1, 2, seed=1)
    resumed.load_state_dict(sampler.state_dict())
    assert list(islice(iter(resumed), 14)) == straight[6:]
    halves = [GlobalBatchSampler(7, 4, rank, 2, 2, seed=1) for rank in range(2)]
    for half in halves:
        half.load_state_dict(sampler.state_dict())
    assert [next(iter(half)) for half in halves] == straight[6:8]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_items": 8}, "num_items was 7 and is 8"),
        ({"global_batch": 8}, "global_batch was 4 and is 8"),
        ({"seed": 2}, "seed was 1 and is 2"),
        ({"shuffle": False}, "shuffle was True and is False"),
    ],
)
def test_a_position_in_another_order_is_refused(changed, message):
    arguments = {"num_items": 7, "global_batch": 4, "rank": 0, "world_size": 1, "micro_batch": 2, "seed": 1}
    state = GlobalBatchSampler(**arguments).state_dict()
    with pytest.raises(ValueError, match=message):
        GlobalBatchSampler(**arguments | changed).load_state_dict(state)
    with pytest.raises(ValueError, match="entries"):
        GlobalBatchSampler(**arguments).load_state_dict({"global_batches": 3})


def test_bad_sampler_arguments():
    with pytest.raises(ValueError, match=r"multiple of .* = 4 \* 3, got 16; the nearest is 12"):
        GlobalBatchSampler(10, 16, 0, 4, 3, seed=0)
    with pytest.raises(ValueError, match="rank must be 0..1"):
        GlobalBatchSampler(10, 16, 2, 2, 4, seed=0)
    with pytest.raises(ValueError, match="no items"):
        GlobalBatchSampler(0, 16, 0, 1, 4, seed=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_loader(clips, workers):
    dataset = ClipDataset(clips, 3, 8, position="random", seed=5)
    sampler = GlobalBatchSampler(5, 4, 0, 1, 2, seed=5)
    expected = list(islice(iter(sampler), 6))
    batches = list(islice(iter(make_loader(dataset, sampler, workers)), 6))
    for batch, items in zip(batches, expected, strict=True):
        assert batch["video"].shape == (2, 3, 3, 8, 8) and batch["video"].dtype == torch.uint8
        assert batch["key"] == [clips.keys[index] for _, index in items]
        assert batch["label"].tolist() == [clips.labels[index] for _, index in items]
        assert torch.equal(batch["video"], torch.stack([dataset[item]["video"] for item in items]))


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_loaders_see_every_clip_once(clips, workers):
    dataset = ClipDataset(clips, 3, 8)
    seen = []
    for rank in range(2):
        loader = make_eval_loader(dataset, 2, workers, rank, 2)
        for _ in range(2):
            keys = [key for batch in loader for key in batch["key"]]
            assert keys == list(clips.keys[rank::2])
        seen += keys
    assert sorted(seen) == sorted(clips.keys)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_raises_its_name(tmp_path, workers):
    (tmp_path / "bad.mp4").write_bytes(b"not a video" * 30)
    dataset = ClipDataset(load_clips(tmp_path), 3, 8)
    sampler = GlobalBatchSampler(1, 1, 0, 1, 1, seed=0)
    with pytest.raises(ClipError, match="bad.mp4: PyAV cannot open it"):
        next(iter(make_loader(dataset, sampler, workers)))
    with pytest.raises(ClipError) as raised:
        next(plain_errors(make_loader(dataset, sampler, workers)))
    assert str(raised.value).startswith(f"{tmp_path / 'bad.mp4'}: PyAV cannot open it") and "\n" not in str(
        raised.value
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_may_be_listed(clips, workers):
    dataset = ClipDataset(clips, 3, 8)
    batches = list(make_loader(dataset, [range(3, 5), [0], range(1, 3)], workers))
    assert [batch["key"] for batch in batches] == [list(clips.keys[3:5]), [clips.keys[0]], list(clips.keys[1:3])]
