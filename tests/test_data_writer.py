"""Written videos and pictures come back with the same size, length and rate, and with the pixels they should have."""

import av
import pytest
import torch
from PIL import Image

from sweettok.data.reader import probe, read_clip, read_image
from sweettok.data.writer import (
    TITLE,
    compare,
    film_strip,
    tile,
    titled,
    write_lines,
    write_png,
    write_video,
)
from sweettok.store import check_output, write_aside


def waves(frames: int, height: int, width: int) -> torch.Tensor:
    """A moving picture, smooth enough for halved chroma, uint8 (3, T, H, W)."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
    channels = [torch.sin(0.06 * x + 0.3 * t), torch.sin(0.05 * y - 0.2 * t), torch.cos(0.04 * (x + y))]
    return ((torch.stack(channels) * 0.4 + 0.5) * 255).to(torch.uint8)


def psnr(one: torch.Tensor, two: torch.Tensor) -> float:
    return float(10 * torch.log10(255**2 / (one.float() - two.float()).square().mean()))


@pytest.mark.parametrize(("height", "width"), [(48, 64), (47, 64), (48, 63), (35, 33)])
@pytest.mark.parametrize("fps", [8, 29.97])
def test_video_comes_back(tmp_path, height, width, fps):
    clip = waves(9, height, width)
    path = tmp_path / "new" / "clip.mp4"
    write_video(path, clip, fps)
    info = probe(path)
    assert (info.num_frames, info.height, info.width) == (9, height, width)
    assert info.fps == pytest.approx(fps, rel=1e-4)
    assert psnr(read_clip(path, 9, None), clip) > 35
    assert [file.name for file in path.parent.iterdir()] == ["clip.mp4"]
    assert torch.equal(read_clip(path, 9, None), read_clip(path, 9, (height, width)))


def test_even_sizes_get_the_common_chroma_unless_asked(tmp_path):
    for size, full, expected in (
        ((32, 32), False, "yuv420p"),
        ((32, 31), False, "yuv444p"),
        ((32, 32), True, "yuv444p"),
    ):
        write_video(tmp_path / "clip.mp4", waves(2, *size), 10, full_chroma=full)
        with av.open(str(tmp_path / "clip.mp4")) as container:
            assert container.streams.video[0].codec_context.pix_fmt == expected


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv"])
@pytest.mark.parametrize(("height", "width"), [(32, 48), (31, 45)])
def test_lossless_is_exact(tmp_path, name, height, width):
    clip = torch.randint(0, 256, (3, 5, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_video(tmp_path / name, clip, 25, lossless=True)
    assert torch.equal(read_clip(tmp_path / name, 5, None), clip)


def test_blocks_make_one_video(tmp_path):
    clip = torch.randint(0, 256, (3, 20, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    write_video(tmp_path / "clip.mp4", iter(clip.split(7, dim=1)), 25, lossless=True)
    assert torch.equal(read_clip(tmp_path / "clip.mp4", 20, None), clip)
    with pytest.raises(ValueError, match="no frames"):
        write_video(tmp_path / "none.mp4", [], 25)
    assert not (tmp_path / "none.mp4").exists()


@pytest.mark.parametrize("size", [(41, 41), (64, 64)])
def test_a_clip_is_written_in_one_way(tmp_path, size):
    clip, written = waves(24, *size), set()
    for _ in range(12):
        write_video(tmp_path / "clip.mp4", clip, 12, full_chroma=True)
        written.add((tmp_path / "clip.mp4").read_bytes())
    assert len(written) == 1


@pytest.mark.parametrize(
    ("clip", "fps", "message"),
    [
        (torch.zeros(3, 4, 8, 8), 10, "uint8"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), 10, r"\(3, T, H, W\)"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), 10, r"\(3, T, H, W\)"),
        (torch.zeros(3, 0, 8, 8, dtype=torch.uint8), 10, "no frames"),
        (torch.zeros(3, 4, 8, 8, dtype=torch.uint8), 0, "fps"),
        (torch.zeros(3, 4, 8, 8, dtype=torch.uint8), 1e-9, "fps must be above 0, and at least 0.001, got 1e-09"),
    ],
)
def test_bad_videos_are_refused(tmp_path, clip, fps, message):
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "clip.mp4", clip, fps)
    assert not list(tmp_path.iterdir())


def test_png_is_exact(tmp_path):
    image = waves(1, 21, 34)[:, 0]
    write_png(tmp_path / "image.png", image)
    assert torch.equal(read_image(tmp_path / "image.png", None)[:, 0], image)
    with pytest.raises(ValueError, match="uint8"):
        write_png(tmp_path / "image.png", image.float())


@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.mov", "clip.png"])
def test_only_our_own_outputs_are_replaced(tmp_path, name):
    path, clip = tmp_path / name, torch.randint(0, 256, (3, 40, 64, 64), dtype=torch.uint8)
    if name == "clip.png":
        write_png(path, clip[:, 0])
    else:
        write_video(path, clip, 25, lossless=True)
    assert path.stat().st_size > 10_000
    check_output(path)
    if name == "clip.png":
        Image.new("RGB", (8, 8)).save(path)
    else:
        write_video(path, clip, 25, replaceable=False)
    with pytest.raises(ValueError, match="not a file that this command writes"):
        check_output(path)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "list.txt"
    write_lines(path, ["old"])
    with pytest.raises(KeyError), write_aside(path) as aside:
        aside.write_text("half")
        raise KeyError
    assert path.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [path]


def test_compare():
    one, two = waves(3, 20, 30), waves(3, 20, 30).flip(3)
    joined = compare(one, two)
    assert joined.shape == (3, 3, 20, 90)
    assert torch.equal(joined[..., :30], one) and torch.equal(joined[..., 30:60], two)
    assert torch.equal(joined[..., 60:].int(), (one.int() - two.int()).abs())
    with pytest.raises(ValueError, match="one shape"):
        compare(one, two[:, :-1])


def test_tile():
    clips = [torch.full((3, 2, 4, 6), value, dtype=torch.uint8) for value in (10, 20, 30, 40, 50)]
    grid = tile(clips, columns=3)
    assert grid.shape == (3, 2, 8, 18)
    values = [[10, 20, 30], [40, 50, 0]]
    assert torch.equal(grid[0, 1], torch.tensor(values).repeat_interleave(4, 0).repeat_interleave(6, 1).byte())
    assert tile(clips[:1], columns=2).shape == (3, 2, 4, 12)
    with pytest.raises(ValueError, match="one shape"):
        tile([clips[0], clips[1][..., 1:]], columns=2)
    with pytest.raises(ValueError, match="one shape"):
        tile([], columns=2)
    with pytest.raises(ValueError, match="columns must be at least 1, got 0"):
        tile(clips, columns=0)
    with pytest.raises(ValueError, match="uint8"):
        tile([clips[0].float()], columns=1)


def test_clips_with_labels_are_enlarged_below_their_titles():
    clip = torch.full((3, 2, 40, 80), 100, dtype=torch.uint8)
    shown = compare(clip, clip, labels=("real", "fake", "difference"))
    assert shown.shape == (3, 2, TITLE + 6 * 40, 3 * 6 * 80)
    titles, pictures = shown[:, :, :TITLE], shown[:, :, TITLE:]
    assert (pictures[..., :960] == 100).all() and not pictures[..., 960:].any()
    real, fake, _ = titles.chunk(3, dim=3)
    assert titles.amax() > 200 and not torch.equal(real, fake) and torch.equal(titles[:, 0], titles[:, 1])
    with pytest.raises(ValueError, match="shorter"):
        compare(clip, clip, labels=("real", "fake"))


def test_a_title_may_be_longer_than_the_picture_is_wide():
    clip = torch.full((3, 2, 5, 7), 100, dtype=torch.uint8)
    shown = titled(clip, "a long label")
    assert shown.shape == (3, 2, TITLE + 5, 7) and torch.equal(shown[:, :, TITLE:], clip)
    with pytest.raises(ValueError, match=r"\(3, T, H, W\)"):
        titled(clip[:, 0], "label")


def test_film_strip():
    clip = waves(9, 10, 12)
    strip = film_strip(clip, 5)
    assert strip.shape == (3, 10, 60)
    for column, place in enumerate((0, 2, 4, 6, 8)):
        assert torch.equal(strip[..., column * 12 : column * 12 + 12], clip[:, place])
    assert torch.equal(film_strip(clip, 1), clip[:, 0])
    for columns in (0, 10):
        with pytest.raises(ValueError, match=r"1\.\.9"):
            film_strip(clip, columns)
