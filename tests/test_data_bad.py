"""Bad files: each has a stated outcome, training goes on with a substitute, and nothing hangs or leaks."""

import ctypes
import gc
import os
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
import tiny
import torch
from test_data_reader import places, stamped

from sweettok.data import backends
from sweettok.data.backends import ClipError
from sweettok.data.config import DataConfig
from sweettok.data.dataset import (
    SUBSTITUTES,
    ClipDataset,
    GlobalBatchSampler,
    make_eval_loader,
    make_loader,
    plain_errors,
)
from sweettok.data.lists import ClipList, load_clips
from sweettok.data.reader import read_clip, read_image, read_within
from sweettok.data.writer import write_png, write_video
from sweettok.stages.inputs import Inputs, image_size
from sweettok.stages.video import WithImages

# ------------------------------------------------------------------------------------------------------------- files


def encode(path: Path, codec: str, pixels: str, frames: list[np.ndarray], **metadata: str) -> Path:
    with av.open(str(path), "w") as container:
        container.metadata.update(metadata)
        stream = container.add_stream(codec, rate=25)
        (stream.height, stream.width), stream.pix_fmt = frames[0].shape[:2], pixels
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return path


def coded(codec: str, pixels: str, count: int = 6) -> Callable[[Path], None]:
    """Frames 0, 1, ... of another codec."""
    return lambda path: encode(path, codec, pixels, [stamped(place) for place in range(count)]) and None


def changed(change: Callable[[bytearray], None], turns: int = 0) -> Callable[[Path], None]:
    """A sound H.264 file of 20 frames, turned counterclockwise by quarters, whose bytes are then changed."""

    def make(path: Path) -> None:
        title = "TITLE" * 3
        frames = [np.rot90(stamped(place), turns) for place in range(20)]
        content = bytearray(encode(path.with_suffix(".mp4"), "libx264", "yuv420p", frames, title=title).read_bytes())
        change(content)
        path.write_bytes(content)

    return make


def field(box: bytes, offset: int, *values: int) -> Callable[[bytearray], None]:
    """Overwrite 32-bit numbers, so many bytes after the name of a box of the header."""

    def change(content: bytearray) -> None:
        struct.pack_into(f">{len(values)}i", content, content.index(box) + offset, *values)

    return change


def cut(content: bytearray) -> None:
    del content[len(content) * 9 // 10 :]


def foreign_title(content: bytearray) -> None:
    start = content.index(b"TITLETITLE")
    content[start : start + 10] = "Grüße, Ärö".encode("latin-1")


def sound_with_cover(path: Path) -> None:
    write_png(path.with_name("cover.png"), torch.zeros(3, 16, 16, dtype=torch.uint8))
    with av.open(str(path), "w") as container, av.open(str(path.with_name("cover.png"))) as source:
        sound = container.add_stream("aac", rate=8000, layout="mono")
        cover = container.add_stream_from_template(source.streams.video[0])
        cover.disposition = av.stream.Disposition.attached_pic
        packet = next(source.demux(video=0))
        packet.stream, packet.pts, packet.dts = cover, 0, 0
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 8000
        for part in ([packet], sound.encode(samples), sound.encode()):
            container.mux(part)


def picture(path: Path) -> None:
    write_png(path, torch.from_numpy(stamped(9)).permute(2, 0, 1))


ROTATED = (0, 1 << 16, 0, -1 << 16, 0, 0, 0, 0, 1 << 30)
UPSIDE_DOWN = (-1 << 16, 0, 0, 0, -1 << 16, 0, 0, 0, 1 << 30)
TILTED = (46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30)
MANY = 0x7FFFFFFF
MATRIX = 44  # where a track's header has how to turn it
CANNOT_OPEN = "PyAV cannot open it"
BLACK = [0, 0]  # what is stamped on the frames after the last

# How the first three frames of a file are read: the places stamped on them, or the error.
FILES = {
    "vp9.webm": (coded("libvpx-vp9", "yuv420p"), [0, 1, 2]),
    "animation.gif": (coded("gif", "rgb8"), [0, 1, 2]),
    "prores.mov": (coded("prores_ks", "yuv422p10le"), [0, 1, 2]),
    "rle.mov": (coded("qtrle", "rgb24"), [0, 1, 2]),
    "ten_bits.mp4": (coded("libx264", "yuv420p10le"), [0, 1, 2]),
    "grey.mp4": (coded("libx264", "gray"), [0, 1, 2]),
    "motion_jpeg.avi": (coded("mjpeg", "yuvj420p"), [0, 1, 2]),
    "windows.wmv": (coded("wmv2", "yuv420p"), [0, 1, 2]),
    "flash.flv": (coded("flv", "yuv420p"), [0, 1, 2]),
    "one_frame.mp4": (coded("libx264", "yuv420p", count=1), [0, *BLACK]),
    "really_mp4.avi": (changed(lambda content: None), [0, 1, 2]),
    "title_in_latin.mp4": (changed(foreign_title), [0, 1, 2]),
    "rotated.mp4": (changed(field(b"tkhd", MATRIX, *ROTATED), turns=1), [0, 1, 2]),
    "upside_down.mp4": (changed(field(b"tkhd", MATRIX, *UPSIDE_DOWN), turns=2), [0, 1, 2]),
    "tilted.mp4": (changed(field(b"tkhd", MATRIX, *TILTED)), "rotated by -45 degrees"),
    "many_samples.mp4": (changed(field(b"stsz", 12, MANY)), CANNOT_OPEN),
    "many_times.mp4": (changed(field(b"stts", 8, MANY)), CANNOT_OPEN),
    "many_chunks.mp4": (changed(field(b"stco", 8, MANY)), [0, 1, 2]),
    "long_sample.mp4": (changed(field(b"stts", 12, MANY)), [0, 1, 2]),
    "giant.mp4": (changed(field(b"avc1", 28, -1)), [0, 1, 2]),
    "cut.mp4": (changed(cut), CANNOT_OPEN),
    "picture.mp4": (picture, [9, *BLACK]),
    "cover.mp4": (sound_with_cover, "sound and a cover picture, but no video"),
    "page.mp4": (lambda path: path.write_text("<!DOCTYPE html><html>404 Not Found</html>"), CANNOT_OPEN),
    "zeros.mp4": (lambda path: path.write_bytes(bytes(5000)), CANNOT_OPEN),
    "subtitles.mkv": (lambda path: path.write_text("1\n00:00:01,000 --> 00:00:02,000\nHello\n"), "no video stream"),
    "folder.mp4": (Path.mkdir, "not a file"),
    "pipe.mp4": (os.mkfifo, "not a file"),
    "pipe.png": (os.mkfifo, "not a file"),
    "broken_link.mp4": (lambda path: path.symlink_to("nowhere.mp4"), "no such file"),
    "empty.png": (Path.touch, "the file is empty"),
    "zeros.png": (lambda path: path.write_bytes(bytes(500)), "not a readable image"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_file_has_its_outcome(tmp_path, name):
    make, outcome = FILES[name]
    path = tmp_path / name
    make(path)
    read = (
        partial(read_image, path, None)
        if path.suffix == ".png"
        else partial(read_clip, path, 3, None, "first", short="black")
    )
    if isinstance(outcome, list):
        assert places(read()) == outcome
        return
    with pytest.raises(ClipError, match=outcome) as raised:
        read()
    assert str(raised.value).startswith(f"{path}: ") and "\n" not in str(raised.value) and raised.value.permanent


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 64), (49, 97)])
def test_tiny_and_uneven_frames(tmp_path, size):
    path = encode(tmp_path / "clip.mkv", "ffv1", "bgr0", [np.full((*size, 3), 50 * t, np.uint8) for t in range(3)])
    for resize in ("stretch", "crop"):
        clip = read_clip(path, 3, 16, resize=resize)
        assert clip.shape == (3, 3, 16, 16) and clip.flatten(2).unique(dim=2).tolist() == 3 * [[[0], [50], [100]]]
    assert read_clip(path, 3, None).shape == (3, 3, *size)


def test_frames_too_large_for_the_memory_are_refused(tmp_path, monkeypatch):
    path = encode(tmp_path / "clip.mp4", "libx264", "yuv420p", [stamped(0)])
    monkeypatch.setattr(backends, "MAX_PIXELS", 4 * 96 * 48)  # decoders count with margins
    assert read_clip(path, 1, 16).any()
    monkeypatch.setattr(backends, "MAX_PIXELS", 96 * 48 - 1)
    with pytest.raises(ClipError, match="clip.mp4: damaged, decoding fails near frame 0"):
        read_clip(path, 1, 16)


# ------------------------------------------------------------------------------------------------------- substitutes

FRAMES = 6
BAD = (1, 4)


@pytest.fixture
def clips(tmp_path) -> ClipList:
    """Eight clips whose blue is 20 times their number; numbers 1 and 4 are no videos."""
    for number in range(8):
        video = torch.zeros(3, FRAMES, 16, 16, dtype=torch.uint8)
        video[0], video[2] = torch.arange(FRAMES)[:, None, None], 20 * number
        write_video(tmp_path / "clips" / "ab"[number % 2] / f"{number}.mkv", video, 10, lossless=True)
    clips = load_clips(tmp_path / "clips")
    ordered = clips.subset(sorted(range(8), key=lambda index: clips.paths[index].stem))
    for number in BAD:
        ordered.paths[number].write_bytes(b"no video " * 50)
    return ordered


def training(clips: ClipList, **options) -> ClipDataset:
    return ClipDataset(clips, 2, 16, "random", **{"seed": 3, "substitute": True, **options})


def number_of(video: torch.Tensor) -> int:
    return int(video[2, 0, 0, 0]) // 20


def same(one: dict, two: dict) -> bool:
    return torch.equal(one["video"], two["video"]) and all(one[key] == two[key] for key in ("key", "label", "problem"))


def test_what_stands_in_for_a_bad_file(clips):
    dataset, strict = training(clips), ClipDataset(clips, 2, 16, "random", seed=3)
    chosen = {number: [] for number in BAD}
    for epoch in range(12):
        for index in range(8):
            item = dataset[epoch, index]
            number = number_of(item["video"])
            assert item["key"] == clips.keys[number] and item["label"] == clips.labels[number]
            if index in BAD:
                assert item["problem"].startswith(f"{clips.paths[index]}: PyAV cannot open it")
                assert "\n" not in item["problem"]
                chosen[index].append(number)
            else:
                assert item["problem"] == "" and torch.equal(item["video"], strict[epoch, index]["video"])
    for numbers in chosen.values():
        assert len(set(numbers)) > 3 and not set(numbers) & set(BAD)
    assert chosen[1] != chosen[4]
    assert [number_of(training(clips, seed=4)[epoch, 1]["video"]) for epoch in range(12)] != chosen[1]


def test_substitutes_do_not_depend_on_what_was_read_before(clips):
    """As after a resume, or in another worker: each item from a dataset of its own, and all of them backwards."""
    asked = [(epoch, index) for epoch in range(6) for index in range(8)]
    dataset, backwards = training(clips), training(clips)
    straight = [dataset[item] for item in asked]
    assert all(same(item, training(clips)[place]) for item, place in zip(straight, asked, strict=True))
    assert all(same(item, backwards[place]) for item, place in zip(straight[::-1], asked[::-1], strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_any_number_of_workers_and_processes_reads_the_same(clips, workers):
    def stream(world_size: int, done: int = 0) -> list[tuple[str, str, int]]:
        samplers = [GlobalBatchSampler(8, 8, rank, world_size, 4, seed=1) for rank in range(world_size)]
        for sampler in samplers:
            sampler.advance(done)
        loaders = [iter(make_loader(training(clips), sampler, workers)) for sampler in samplers]
        batches = [batch for _ in range(done, 3) for loader in loaders for batch in islice(loader, 2 // world_size)]
        starts = [int(start) for batch in batches for start in batch["video"][:, 0, 0, 0, 0]]
        return list(zip(*([x for b in batches for x in b[name]] for name in ("key", "problem")), starts, strict=True))

    whole = stream(1)
    assert sum(bool(problem) for _, problem, _ in whole) == 3 * len(BAD)
    assert stream(2) == whole and stream(1, done=2) == whole[16:]


def test_views_of_a_bad_file_are_views_of_one_substitute(clips):
    dataset = ClipDataset(clips, 2, 16, "even", clips_per_video=2, flips=True, substitute=True)
    for index in BAD:
        views = [dataset[4 * index + view] for view in range(4)]
        assert len({view["key"] for view in views}) == 1 and all(view["problem"] for view in views)
        assert torch.equal(views[0]["video"].flip(-1), views[1]["video"])
        assert [int(view["video"][0, 0, 0, 0]) for view in views] == [0, 0, FRAMES - 2, FRAMES - 2]


def test_files_that_vanish_or_break_during_the_run(clips):
    dataset = training(clips)
    assert dataset[0, 2]["problem"] == dataset[0, 3]["problem"] == ""
    clips.paths[2].unlink()
    clips.paths[3].write_bytes(b"")
    assert dataset[1, 2]["problem"] == f"{clips.paths[2]}: no such file"
    assert dataset[1, 3]["problem"] == f"{clips.paths[3]}: the file is empty"


class Counting(ClipDataset):
    """Clip 1 has no frame that can be decoded, clip 4 fails in even epochs."""

    reads: list[str] = []

    def __getitem__(self, item):
        self.epoch = item[0]
        return super().__getitem__(item)

    def _decode(self, path, rng, part):
        self.reads.append(path.stem)
        if path.stem == "1" or (path.stem == "4" and self.epoch % 2 == 0):
            raise ClipError(f"{path}: damaged", permanent=path.stem == "1")
        return torch.zeros(3, 1, 1, 1)


def test_only_files_without_hope_are_given_up(clips):
    dataset = Counting(clips, 2, 16, substitute=True)
    dataset.reads = []
    problems = [[dataset[epoch, index]["problem"] for epoch in range(6)] for index in BAD]
    assert problems[0] == 6 * [f"{clips.paths[1]}: damaged"]
    assert problems[1] == 3 * [f"{clips.paths[4]}: damaged", ""]
    assert dataset.reads.count("1") == 1 and dataset.reads.count("4") >= 6


@pytest.mark.parametrize("workers", [0, 1])
def test_training_ends_when_substitutes_fail_too(clips, workers):
    bad = clips.subset(BAD)
    message = f"{bad.paths[0]}: PyAV cannot open it .*; nor can {SUBSTITUTES} clips drawn in its place be read"
    with pytest.raises(ClipError, match=message) as raised:
        next(plain_errors(make_loader(training(bad), [[(0, 0)]], workers)))
    assert "\n" not in str(raised.value)


def test_a_folder_of_odd_files_can_be_trained_on(videos):
    """Of corrupted.mp4 the first frames can be read, so it is a substitute and needs one."""
    dataset = ClipDataset(load_clips(videos / "odd"), 5, 32, "random", substitute=True)
    items = [dataset[epoch, index] for epoch in range(4) for index in range(len(dataset))]
    met = {item["problem"].partition(": ")[0].rpartition("/")[2] for item in items}
    assert met == {"", "corrupted.mp4"}
    assert any(item["key"] == "corrupted" and not item["problem"] for item in items)
    assert all(item["video"].any() for item in items)


# --------------------------------------------------------------------------------------------- training and validation


def test_training_takes_substitutes_and_validation_is_strict(clips, tmp_path):
    data = DataConfig(train=str(tmp_path / "clips"), validation=str(tmp_path / "clips"), read_timeout=77)
    config = tiny.proxy_config(num_frames=5)
    train, validation = (Inputs().clips(data.train, data, config, seed) for seed in (5, None))
    images = Inputs().clips(data.train, data, image_size(config), seed=5)
    assert (train.timeout, validation.timeout, images.timeout) == (77, 77, 77)
    bad = [validation.clips.paths.index(clips.paths[number]) for number in BAD]
    for index in bad:
        assert train[0, index]["problem"] and images[0, index]["problem"] and train[0, index]["video"].any()
        with pytest.raises(ClipError, match=f"{validation.clips.paths[index]}: PyAV cannot open it"):
            validation[index]
    with pytest.raises(ClipError, match=r"[14].mkv: PyAV cannot open it"):
        list(plain_errors(make_eval_loader(validation, 2, workers=1)))
    assert "problem" not in validation[0]
    with pytest.raises(ValueError, match="data.read_timeout must be above 0"):
        DataConfig(train="clips", read_timeout=0)


def test_images_beside_clips_tell_their_problems_too(clips):
    images = training(clips.subset([0, 1]))
    both = WithImages(training(clips.subset([0, 0, 0, 1]), seed=0), images)
    good, image, clip, two = (both[0, 0], both[0, 1], both[0, 2], both[0, 3])
    assert [bool(item["problem"]) for item in (good, image, clip, two)] == [False, True, False, True]
    assert two["problem"].count("cannot open it") == 4 and "1.mkv: PyAV" in two["problem"].partition("; ")[0]
    assert image["problem"] == images[0, 1]["problem"] and torch.equal(image["image"], images[0, 1]["video"])


# ------------------------------------------------------------------------------------------------- readers that hang


def endless() -> torch.Tensor:
    while True:
        pass


def asleep() -> torch.Tensor:
    time.sleep(600)


@pytest.mark.parametrize("hang", ["pipe", "asleep", "endless"])
def test_readers_that_hang_are_left_behind(tmp_path, hang):
    os.mkfifo(tmp_path / "pipe")
    read = {"pipe": (tmp_path / "pipe").read_text, "asleep": asleep, "endless": endless}[hang]
    before = set(threading.enumerate())
    with pytest.raises(ClipError, match="clip.mp4: not read within 0.2 seconds") as raised:
        read_within(0.2, tmp_path / "clip.mp4", read)
    assert raised.value.permanent
    (left,) = set(threading.enumerate()) - before
    assert left.daemon
    if hang == "pipe":
        os.close(os.open(tmp_path / "pipe", os.O_WRONLY))
    if hang != "asleep":  # it ends when it is back in Python
        left.join(60)
        assert not left.is_alive()


def test_what_a_reader_raises_is_raised(tmp_path):
    def fail():
        raise TimeoutError("of its own")

    with pytest.raises(TimeoutError, match="of its own"):
        read_within(60, tmp_path, fail)
    assert read_within(60, tmp_path, lambda: torch.ones(1)) == 1


class Hanging(ClipDataset):
    """Opening clips 1 and 4 blocks for ever; of the others nothing is read."""

    def _decode(self, path, rng, part):
        if int(path.stem) in BAD:
            os.open(path.with_suffix(".pipe"), os.O_RDONLY)
        return torch.full((3, 1, 1, 1), int(path.stem))


@pytest.mark.parametrize("workers", [0, 2])
def test_training_goes_on_beside_readers_that_hang(clips, workers):
    for number in BAD:
        os.mkfifo(clips.paths[number].with_suffix(".pipe"))
    dataset = Hanging(clips, 1, 16, timeout=1, substitute=True)
    loader = make_loader(dataset, GlobalBatchSampler(8, 4, 0, 1, 4, seed=0), workers)
    batches = list(islice(iter(loader), 6))
    problems = [problem for batch in batches for problem in batch["problem"] if problem]
    assert Counter(problems) == {f"{clips.paths[number]}: not read within 1 seconds": 3 for number in BAD}
    with pytest.raises(ClipError, match="1.mkv: not read within 1 seconds"):
        list(plain_errors(make_eval_loader(Hanging(clips, 1, 16, timeout=1), 4, workers)))


# ------------------------------------------------------------------------------------------------------------ memory


def state() -> tuple[int, int, int]:
    """Bytes of memory, open files and threads of this process, without garbage and what the allocator holds back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd")), threading.active_count()


@pytest.mark.parametrize(
    ("name", "backend"),
    [("clip.avi", "pyav"), ("clip.avi", "decord"), ("clip.png", "auto"), ("bad.mp4", "pyav"), ("bad.mp4", "decord")],
)
def test_memory_stays_flat_over_1000_reads(tmp_path, name, backend):
    """A clip as it is asked for takes 48 kB: to keep each of the last 700 would take 34 MB."""
    if not Path("/proc/self/statm").exists() or not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("the system does not report how much memory is in use")
    if backend == "decord":
        pytest.importorskip("decord")
    encode(tmp_path / "clip.avi", "mjpeg", "yuvj420p", [np.zeros((16, 16, 3), np.uint8)] * 5)
    write_png(tmp_path / "clip.png", torch.zeros(3, 16, 16, dtype=torch.uint8))
    (tmp_path / "bad.mp4").write_bytes(b"no video " * 50)
    images = name.endswith("png")
    size = 128 if images else 64
    clips = ClipList((tmp_path / name,), None, None, ("clip",))
    dataset = ClipDataset(clips, 1 if images else 4, size, "random", backend=backend)
    for epoch in range(1000):
        if epoch == 300:
            before = state()
        try:
            assert dataset[epoch, 0]["video"].shape[2:] == (size, size)
        except ClipError:
            assert name == "bad.mp4"
    after = state()
    # Threads of tests before this one may end meanwhile.
    assert after[0] - before[0] < 8 << 20 and after[1] <= before[1] and after[2] <= before[2]
