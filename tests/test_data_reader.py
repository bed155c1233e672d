"""Reading clips: the right frames, the same from both decoders, and clear errors for what cannot be read."""

import json
import pickle
import random
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from sweettok.data.backends import ClipError, PyAVVideo
from sweettok.data.reader import clip_places, count_frames, probe, read_clip, read_image

HEIGHT, WIDTH, COUNT, BITS = 48, 96, 60, 6

# Formats that store frames out of order, without timestamps, or with keyframes that decoding cannot simply start from.
FORMATS = {
    "closed.mp4": ("libx264", {"x264-params": "keyint=12:bframes=3:scenecut=0"}),
    "open.mkv": ("libx264", {"x264-params": "open-gop=1:keyint=12:bframes=3:scenecut=0"}),
    "open.avi": ("libx264", {"x264-params": "open-gop=1:keyint=12:bframes=3:scenecut=0"}),
    "refresh.mp4": ("libx264", {"x264-params": "intra-refresh=1:keyint=12"}),
    "xvid_like.avi": ("mpeg4", {"g": "12", "bf": "2"}),
    "xvid_like.mp4": ("mpeg4", {"g": "12", "bf": "2"}),
    "mpeg2.mpg": ("mpeg2video", {"g": "12", "bf": "2"}),
    "stream.ts": ("libx264", {"x264-params": "keyint=12:bframes=3"}),
    "lossless.mkv": ("ffv1", {}),
}


def stamped(place: int) -> np.ndarray:
    """A frame with a moving block, and its place written in black and white squares, one a bit."""
    frame = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    frame[24:44, place : place + 20] = (200, 60, 40)
    for bit in range(BITS):
        frame[:16, bit * 16 : bit * 16 + 16] = 255 * (place >> bit & 1)
    return frame


def places(clip: torch.Tensor) -> list[int]:
    """The places written in the frames of a (3, T, H, W) clip of any size."""
    bits = torch.nn.functional.interpolate(clip.float(), size=(HEIGHT, WIDTH)).mean(0)[:, 4:12]
    squares = bits.reshape(len(bits), 8, BITS, 16)[..., 4:12].mean(dim=(1, 3)) > 127
    return [sum(1 << bit for bit in range(BITS) if row[bit]) for row in squares.tolist()]


def encode(path: Path, codec: str, options: dict, first_pts: int = 0, muxer: dict | None = None) -> Path:
    with av.open(str(path), "w", options=muxer or {}) as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height = WIDTH, HEIGHT
        stream.pix_fmt = "bgr0" if codec == "ffv1" else "yuv420p"
        stream.time_base = Fraction(1, 25)
        for place in range(COUNT):
            frame = av.VideoFrame.from_ndarray(stamped(place), format="rgb24")
            frame.pts, frame.time_base = place + first_pts, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A file of 60 stamped frames in every format."""
    folder = tmp_path_factory.mktemp("clips")
    for name, (codec, options) in FORMATS.items():
        encode(folder / name, codec, options)
    return folder


@pytest.mark.parametrize("name", FORMATS)
def test_frames_are_exact_at_every_start(folder, name):
    for start in range(0, COUNT - 5, 3):
        assert places(read_clip(folder / name, 5, None, start=start)) == list(range(start, start + 5))
    assert places(read_clip(folder / name, 5, (24, 48), position="last", stride=3)) == [47, 50, 53, 56, 59]
    assert count_frames(folder / name) == COUNT


@pytest.mark.parametrize("name", [name for name in FORMATS if not name.endswith(".ts")])
def test_decord_reads_the_same_frames_and_pixels(folder, name):
    pytest.importorskip("decord")
    for start in (0, 13, 24, 40):
        clips = [read_clip(folder / name, 6, (32, 40), start=start, backend=backend) for backend in ("pyav", "decord")]
        assert places(clips[1]) == list(range(start, start + 6))
        assert (clips[0].int() - clips[1].int()).abs().max() <= 2  # inverse transforms of the two FFmpeg versions


@pytest.mark.parametrize("width", [8, 16, 17, 24, 48])
def test_decord_reads_narrow_frames(folder, width):
    """It pads their rows, and for some widths takes the padding for further channels."""
    pytest.importorskip("decord")
    one, two = (read_clip(folder / "lossless.mkv", 3, (20, width), backend=backend) for backend in ("pyav", "decord"))
    assert torch.equal(one, two) and two.shape == (3, 3, 20, width)


@pytest.mark.parametrize("name", ["xvid_like.avi", "open.mkv"])
def test_why_decord_comes_second(folder, name):
    """Asked for one frame of a fresh file, decord seeks and gives another; the reader never lets it seek."""
    decord = pytest.importorskip("decord")
    asked = range(0, COUNT, 5)
    got = [decord.VideoReader(str(folder / name))[place].asnumpy() for place in asked]
    assert places(torch.from_numpy(np.stack(got)).permute(3, 0, 1, 2)) != list(asked)


def test_decord_refuses_transport_streams(folder):
    pytest.importorskip("decord")
    with pytest.raises(ClipError, match="transport stream"):
        read_clip(folder / "stream.ts", 5, None, backend="decord")


@pytest.mark.parametrize("name", ["closed.mp4", "open.mkv", "xvid_like.mp4"])
def test_seeks_instead_of_decoding_from_the_start(folder, name, monkeypatch):
    monkeypatch.setattr(PyAVVideo, "_from_start", lambda *_: pytest.fail("decoded from the start"))
    assert places(read_clip(folder / name, 5, None, start=50)) == [50, 51, 52, 53, 54]


def test_frames_hidden_by_an_edit_list_do_not_count(tmp_path):
    muxer = {"avoid_negative_ts": "disabled", "use_editlist": "1"}
    path = encode(tmp_path / "cut.mp4", "libx264", {"x264-params": "keyint=24:bframes=2"}, first_pts=-10, muxer=muxer)
    assert probe(path).num_frames == COUNT - 10
    assert places(read_clip(path, 3, None, position="first")) == [10, 11, 12]
    assert places(read_clip(path, 3, None, position="last")) == [57, 58, 59]


def test_file_with_fewer_frames_than_packets(folder, monkeypatch):
    original = PyAVVideo.__init__

    def promise_more(self, path):
        original(self, path)
        self.num_frames += 7

    monkeypatch.setattr(PyAVVideo, "__init__", promise_more)
    assert places(read_clip(folder / "closed.mp4", 4, None, position="last")) == [56, 57, 58, 59]
    assert count_frames(folder / "closed.mp4") == COUNT


def test_probe(folder):
    info = probe(folder / "closed.mp4")
    assert (info.num_frames, info.fps, info.height, info.width, info.backend) == (COUNT, 25.0, HEIGHT, WIDTH, "pyav")


def test_center_and_random_follow_the_release(golden_folder):
    table = json.loads((golden_folder / "training.json").read_text())["clip_sampling"]
    for count, row in table.items():
        center = clip_places(int(count), 17)
        assert (center[0], center[-1]) == (row["center_first"], row["center_last_real"])
        assert 17 - len(center) == row["padded_black_frames"]
        drawn = clip_places(int(count), 17, "random", rng=random.Random(0))
        assert drawn[0] == row["rand_first_seed0"]
        starts = {clip_places(int(count), 17, "random", rng=random.Random(seed))[0] for seed in range(3000)}
        assert [min(starts), max(starts)] == row["random_start_inclusive_range"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((30, 17, "center"), range(7, 24)),
        ((30, 17, "first"), range(0, 17)),
        ((30, 17, "last"), range(13, 30)),
        ((30, 4, "center", 5), range(7, 27, 5)),
        ((30, 16, "center"), range(7, 23)),
        ((17, 17, "center"), range(17)),
        ((9, 17, "last"), range(9)),
        ((9, 4, "center", 5), range(0, 9, 5)),
        ((30, 17, "center", 1, 20), range(20, 30)),
        ((1, 1, "center"), range(1)),
    ],
)
def test_clip_places(arguments, expected):
    assert clip_places(*arguments) == expected


@pytest.mark.parametrize("num_frames", [1, 9, 17, 18, 20, 30, 31, 500])
def test_evenly_spread_clips(num_frames):
    def starts(count, frames=17):
        parts = [clip_places(num_frames, frames, "even", part=(j, count)) for j in range(count)]
        assert all(len(part) == min(frames, num_frames) for part in parts)
        return [part[0] for part in parts]

    spare = max(0, num_frames - 17)
    assert clip_places(num_frames, 17, "even") == clip_places(num_frames, 17, "center")
    assert starts(2) == [0, spare]
    for count in (3, 4, 5, 10):
        assert all(abs(start - j * spare / (count - 1)) <= 0.5 for j, start in enumerate(starts(count)))


def test_parts_of_a_video(folder):
    read = [read_clip(folder / "open.mkv", 6, None, "even", stride=2, part=(j, 4)) for j in range(4)]
    assert [places(clip)[0] for clip in read] == [0, 16, 33, 49]
    assert places(read[3]) == [49, 51, 53, 55, 57, 59]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": 0}, "at least 1"),
        ({"stride": 0}, "at least 1"),
        ({"position": "middle"}, "position"),
        ({"position": "random"}, "rng"),
        ({"start": -1}, "start"),
        ({"size": (8, 0)}, "size"),
        ({"size": (8, 8, 3)}, "size"),
        ({"resize": "squash"}, "resize"),
        ({"short": "loop"}, "short"),
        ({"backend": "opencv"}, "backend"),
        ({"position": "even", "part": (2, 2)}, "part"),
        ({"position": "even", "part": (0, 0)}, "part"),
        ({"position": "center", "part": (0, 2)}, "part"),
    ],
)
def test_bad_arguments(folder, arguments, message):
    with pytest.raises(ValueError, match=message):
        read_clip(folder / "closed.mp4", **{"frames": 5, "size": 8, **arguments})


def test_random_depends_on_the_generator_alone(folder):
    def draw(seed):
        return places(read_clip(folder / "closed.mp4", 5, None, position="random", rng=random.Random(seed)))

    state = random.getstate()
    assert draw(1) == draw(1)
    assert len({draw(seed)[0] for seed in range(8)}) > 4
    assert random.getstate() == state


def test_short_videos(folder):
    path = folder / "lossless.mkv"
    black = read_clip(path, 5, None, start=57, short="black")
    assert black.shape == (3, 5, HEIGHT, WIDTH)
    assert places(black[:, :3]) == [57, 58, 59] and not black[:, 3:].any()
    repeated = read_clip(path, 5, None, start=57)
    assert torch.equal(repeated[:, :3], black[:, :3]) and places(repeated[:, 3:]) == [59, 59]
    with pytest.raises(ClipError, match="too few for 61"):
        read_clip(path, 61, None, short="error")
    with pytest.raises(ClipError, match="starts at frame 60, the video has 60"):
        read_clip(path, 1, None, start=60)


def test_resize_policies(folder):
    path = folder / "lossless.mkv"  # 48 x 96
    native = read_clip(path, 1, None, position="first")
    assert torch.equal(native[:, 0], torch.from_numpy(stamped(0)).permute(2, 0, 1))
    assert native.is_contiguous() and native.dtype == torch.uint8
    assert read_clip(path, 2, 32).shape == (3, 2, 32, 32)
    crop = read_clip(path, 1, HEIGHT, position="first", resize="crop")
    assert torch.equal(crop, native[:, :, :, 24:72])
    assert torch.equal(read_clip(path, 1, (48, 96), position="first", resize="crop"), native)
    assert read_clip(path, 1, (31, 17), resize="crop").shape == (3, 1, 31, 17)
    assert places(read_clip(path, 1, (24, 48), start=21, resize="crop")) == [21]


@pytest.mark.parametrize("backend", ["auto", "pyav", "decord"])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [("none.mp4", None, "no such file"), ("empty.mp4", b"", "empty"), ("text.mp4", b"not a video" * 50, "cannot open")],
)
def test_unreadable_files(tmp_path, backend, name, content, message):
    if backend == "decord":
        pytest.importorskip("decord")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ClipError, match=message) as caught:
        read_clip(tmp_path / name, 5, 16, backend=backend)
    assert name in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_file_without_video(tmp_path):
    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(ClipError, match="no video stream"):
        read_clip(path, 5, 16, backend="pyav")


@pytest.mark.parametrize("name", ["xvid_like.avi", "closed.mp4"])
def test_damage_is_an_error_where_it_shows(folder, tmp_path, name):
    content = bytearray((folder / name).read_bytes())
    with av.open(str(folder / name)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for start, size in packets[30:33]:
        content[start : start + size] = bytes(size)
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ClipError, match="damaged"):
        count_frames(path)
    for start in (28, 31, 33):
        with pytest.raises(ClipError, match="damaged"):
            read_clip(path, 5, 16, start=start)
    for start in (20, 48):  # before the damage, and from a keyframe after it
        assert places(read_clip(path, 5, None, start=start)) == list(range(start, start + 5))


def test_decoders_stand_in_for_each_other(folder, monkeypatch):
    pytest.importorskip("decord")
    monkeypatch.setitem(sys.modules, "av", None)
    assert probe(folder / "closed.mp4").backend == "decord"
    assert places(read_clip(folder / "open.mkv", 3, None, start=30)) == [30, 31, 32]
    monkeypatch.setitem(sys.modules, "decord", None)
    with pytest.raises(ClipError, match="pyav is not installed.*decord is not installed"):
        read_clip(folder / "closed.mp4", 3, 16)


# Real files: (greatest, mean) difference in grey levels that the two decoders may show at 256 x 256. Pixels are equal
# bit for bit, except for 340x256 sources, whose height is kept: recent FFmpeg interpolates their chroma rows finely.
CHROMA = (80, 1.0)
REAL = {
    "arm_wrestling.mp4": CHROMA,
    "bikes.mp4": (0, 0),
    "carphone.mp4": (0, 0),
    "nasa.mp4": (0, 0),
    "odd/h265.mp4": (0, 0),
    "odd/rotated_90.mov": (0, 0),
    "odd/unordered.mov": (0, 0),
    "pancake.mkv": (0, 0),
    "part0.mp4": CHROMA,
    "people_stairs.mp4": CHROMA,
    "realshort.mp4": (0, 0),
    "street.avi": (0, 0),
}


@pytest.mark.parametrize("name", REAL)
def test_real_clips_are_the_same_from_both_decoders(videos, name):
    pytest.importorskip("decord")
    path = videos / name
    for position in ("first", "center", "last"):
        one, two = (read_clip(path, 17, 256, position, backend=backend).int() for backend in ("pyav", "decord"))
        gap = (one - two).abs()
        greatest, mean = REAL[name]
        assert gap.max() <= greatest and gap.float().mean() <= mean
        if greatest:  # a wrong frame or a wrong size could hide in that bound
            one, two = (read_clip(path, 17, (192, 256), position, backend=backend) for backend in ("pyav", "decord"))
            assert torch.equal(one, two)


@pytest.mark.parametrize("name", [*REAL, "odd/av1.mkv"])
def test_real_clips_after_a_seek_equal_decoding_from_the_start(videos, name):
    path = videos / name
    whole = read_clip(path, probe(path).num_frames, 32, position="first")
    for start in range(0, whole.shape[1] - 3, max(1, whole.shape[1] // 7)):
        assert torch.equal(read_clip(path, 4, 32, start=start), whole[:, start : start + 4])


def test_odd_files(videos):
    odd = videos / "odd"
    assert probe(odd / "av1.mkv").num_frames == 125
    with pytest.raises(ClipError, match="decord cannot open"):
        read_clip(odd / "av1.mkv", 17, 64, backend="decord")
    assert (probe(odd / "rotated_90.mov").height, probe(odd / "rotated_90.mov").width) == (568, 320)
    assert probe(odd / "h265.mp4").num_frames == 10
    padded = read_clip(odd / "h265.mp4", 17, 128, short="black")
    assert padded[:, 9].any() and not padded[:, 10:].any()
    assert read_clip(odd / "corrupted.mp4", 17, 64, position="first").shape == (3, 17, 64, 64)
    for position in ("center", "last"):
        with pytest.raises(ClipError, match="corrupted.mp4: damaged"):
            read_clip(odd / "corrupted.mp4", 17, 64, position=position)


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "jpg"])
def test_images(tmp_path, suffix):
    from PIL import Image

    path = tmp_path / f"frame.{suffix}"
    Image.fromarray(stamped(21)).save(path, quality=95)
    image = read_image(path, None)
    assert image.shape == (3, 1, HEIGHT, WIDTH) and image.dtype == torch.uint8
    assert places(image) == [21]
    assert read_image(path, (20, 30)).shape == (3, 1, 20, 30)
    assert torch.equal(read_image(path, HEIGHT, "crop"), image[..., 24:72])


def test_images_are_turned_upright_and_checked(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, to be turned clockwise
    Image.fromarray(np.rot90(stamped(13)).copy()).save(tmp_path / "turned.png", exif=exif)
    assert places(read_image(tmp_path / "turned.png", None)) == [13]
    (tmp_path / "broken.png").write_bytes((tmp_path / "turned.png").read_bytes()[:200])
    (tmp_path / "text.jpg").write_text("no image")
    for name in ("broken.png", "text.jpg", "none.png"):
        with pytest.raises(ClipError, match=name):
            read_image(tmp_path / name, 16)
