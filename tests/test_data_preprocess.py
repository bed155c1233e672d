"""One way from a file to a clip tensor: clips and streams of videos and images have the same pixels."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from test_resize import waves

import sweettok
from sweettok.data.backends import ClipError
from sweettok.data.dataset import ClipDataset
from sweettok.data.lists import load_clips
from sweettok.data.preprocess import POSITIONS, Preprocessing, open_frames
from sweettok.data.reader import read_clip, read_image
from sweettok.data.resize import RESIZES, Fit, resize
from sweettok.data.writer import write_png, write_video

SIZE = (32, 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    video = waves(9, 48, 97)
    write_video(folder / "clip.mkv", video, 10, lossless=True)
    write_png(folder / "image.png", video[:, 0])
    return folder


@pytest.mark.parametrize("policy", RESIZES)
def test_clips_streams_and_training_agree(folder, policy):
    clip = read_clip(folder / "clip.mkv", 9, SIZE, resize=policy)
    with open_frames(folder / "clip.mkv", policy, SIZE) as stream:
        assert torch.equal(torch.stack(list(stream.frames), dim=1), clip)
        assert stream.fit == Fit(policy, (48, 97), SIZE) and stream.fps == 10
    assert torch.equal(Preprocessing(resize=policy).read(folder / "clip.mkv", 9, SIZE), clip)
    (folder / "list.txt").write_text("clip.mkv\n")
    assert torch.equal(ClipDataset(load_clips(folder / "list.txt"), 9, SIZE, resize=policy)[0]["video"], clip)
    reference = Fit(policy, (48, 97), SIZE).apply(waves(9, 48, 97))
    assert (clip.int() - reference.int()).abs().float().mean() < 1
    black = clip.flatten(0, 1).amax(0) == 0
    assert black.any() == (policy == "pad") and black.float().mean() == pytest.approx(0.375 if policy == "pad" else 0)


@pytest.mark.parametrize("policy", RESIZES)
def test_images_are_clips_of_one_frame(folder, policy):
    image = read_clip(folder / "image.png", 9, SIZE, resize=policy)
    assert image.shape == (3, 1, *SIZE) and torch.equal(image, read_image(folder / "image.png", SIZE, policy))
    assert torch.equal(Preprocessing(resize=policy).read(folder / "image.png", 9, SIZE), image)
    with open_frames(folder / "image.png", policy, SIZE) as stream:
        assert torch.equal(next(stream.frames), image[:, 0]) and stream.fit.source == (48, 97)
    with pytest.raises(ClipError, match="image.png: the clip starts at frame 3, an image has one frame"):
        read_clip(folder / "image.png", 9, SIZE, start=3)
    with pytest.raises(ValueError, match="position must be one of"):
        read_clip(folder / "image.png", 9, SIZE, "middle")


def test_preprocessing_options(folder):
    assert sweettok.read_clip is read_clip
    default = Preprocessing()
    assert dataclasses.asdict(default) == {"resize": "stretch", "position": "center", "stride": 1, "short": "repeat"}
    changed = default.override(position="last", stride=2, resize=None, short=None)
    assert changed == Preprocessing(position="last", stride=2)
    assert torch.equal(changed.read(folder / "clip.mkv", 3, None), read_clip(folder / "clip.mkv", 3, None, "last", 2))
    assert torch.equal(
        changed.read(folder / "clip.mkv", 3, 8, start=1), read_clip(folder / "clip.mkv", 3, 8, start=1, stride=2)
    )
    for options, message in (
        ({"resize": "zoom"}, "resize must be one of stretch, crop, pad; got 'zoom'"),
        ({"position": "random"}, f"position must be one of {', '.join(POSITIONS)}; got 'random'"),
        ({"short": "loop"}, "short must be one of black, repeat, error; got 'loop'"),
        ({"stride": 0}, "preprocessing.stride must be a whole number from 1 to 2147483647; got 0"),
        ({"stride": 10**20}, "preprocessing.stride must be a whole number from 1 to 2147483647; got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Preprocessing(**options)


@pytest.mark.parametrize("kind", ["png", "bmp"])
def test_grey_images(tmp_path, kind):
    """16-bit grey keeps its high byte, as 16-bit colours do; it does not become white."""
    values = np.arange(0, 256, dtype=np.uint16).reshape(16, 16)
    grey = Image.fromarray(values.astype(np.uint8)) if kind == "bmp" else Image.fromarray(values * 256 + 77)
    grey.save(tmp_path / f"grey.{kind}")
    image = read_image(tmp_path / f"grey.{kind}", None)
    assert torch.equal(image, torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(3, -1, -1, -1))


@pytest.mark.parametrize("kind", ["webp", "png"])
def test_animations_are_no_images(tmp_path, kind):
    frames = [Image.fromarray(np.full((16, 16, 3), level, np.uint8)) for level in (0, 100, 200)]
    frames[0].save(tmp_path / f"a.{kind}", save_all=True, append_images=frames[1:], lossless=True)
    with pytest.raises(ClipError, match=f"a.{kind}: an animation of 3 frames, not a still image: convert") as raised:
        read_clip(tmp_path / f"a.{kind}", 1, 16)
    assert raised.value.permanent
    frames[0].save(tmp_path / f"b.{kind}", lossless=True)
    assert not read_clip(tmp_path / f"b.{kind}", 1, 16).any()


def test_streams_of_tensors(folder):
    video = waves(5, 48, 97)
    for tensor in (video, video[None], video / 255 - 0.5):
        with open_frames(tensor, "pad", SIZE, max_frames=3) as stream:
            frames = list(stream.frames)
        assert len(frames) == 3 and stream.fps is None and frames[0].dtype == tensor.dtype
    assert torch.equal(frames[0][:, 6:26], resize(video / 255 - 0.5, (20, 40))[:, 0])
    for source, options, message in (
        (torch.zeros(4, 3, 8, 8), {}, r"must have shape \(3, frames, height, width\), got \(4, 3, 8, 8\)"),
        (7, {}, "source must be a path or a tensor"),
        (folder / "clip.mkv", {"resize": "zoom"}, "resize must be one of"),
    ):
        with (
            pytest.raises(ValueError, match=message),
            open_frames(source, **{"resize": "crop", "size": SIZE, **options}),
        ):
            pass
