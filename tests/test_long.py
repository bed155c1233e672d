"""Videos of any length and size: chunk maps, blending, streams, files of ids, seams."""

import itertools
import threading
from contextlib import closing

import av
import pytest
import tiny
import torch

from sweettok.data.backends import ClipError
from sweettok.data.preprocess import Preprocessing, open_frames
from sweettok.data.reader import probe, read_clip
from sweettok.data.writer import write_png, write_video
from sweettok.pixels import to_float
from sweettok.tokenizer.model import SweetTok
from sweettok.tokenizer.output import LongTokens
from sweettok.video.chunks import ChunkMap, ClipCutter, blend, default_overlap
from sweettok.video.long import one_ahead
from sweettok.video.seams import FrameSteps, seam_metric, seam_places

LENGTH = 9  # of the tiny tokenizer's clips, of 16x16
MAPS = [(1, 0), (2, 0), (2, 1), (5, 0), (5, 2), (5, 4), (9, 0), (9, 1), (9, 6), (9, 8), (17, 0), (17, 2), (17, 13)]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer(tiny.tokenizer_config(preprocessing=Preprocessing("crop")))


def waves(frames: int, height: int = 16, width: int = 16, speed: float = 0.3) -> torch.Tensor:
    """A moving picture, uint8 (3, T, H, W)."""
    t, y, x = torch.meshgrid(torch.arange(frames), torch.arange(height), torch.arange(width), indexing="ij")
    channels = [torch.sin(0.3 * x + speed * t), torch.sin(0.2 * y - speed * t), torch.cos(0.2 * (x + y) + speed * t)]
    return ((torch.stack(channels) * 0.4 + 0.5) * 255).to(torch.uint8)


def cut(video: torch.Tensor, chunks: ChunkMap) -> list[torch.Tensor]:
    return list(ClipCutter(video.unbind(1), chunks.length, chunks.overlap))


# ------------------------------------------------------------------------------------------------------- chunk maps


@pytest.mark.parametrize(("length", "overlap"), MAPS)
def test_every_frame_is_covered_and_weights_sum_to_one(length, overlap):
    for frames in range(1, 3 * length + 5):
        chunks = ChunkMap(frames, length, overlap)
        starts = chunks.starts
        assert starts[0] == 0 and all(a < b for a, b in itertools.pairwise(starts))
        assert all(b - a <= length - overlap for a, b in itertools.pairwise(starts))
        assert starts[-1] + length == max(frames, length)
        assert len(chunks) == 1 + max(0, -((length - frames) // (length - overlap)))  # none more than needed
        weights = chunks.weights()
        assert weights.min() >= 0 and torch.allclose(weights.sum(0), torch.ones(frames))
        for weight, start in zip(weights, starts, strict=True):
            outside = torch.ones(frames, dtype=torch.bool)
            outside[start : start + length] = False
            assert not weight[outside].any() and weight.any()


def test_the_cross_fade_is_linear():
    chunks = ChunkMap(32, 17, 2)
    assert chunks.starts == (0, 15) and chunks.joints == (0, 15)
    assert torch.allclose(chunks.weights()[1, 13:19], torch.tensor([0, 0, 1 / 3, 2 / 3, 1, 1]))
    late = ChunkMap(19, 17, 2)  # the second clip starts early, and is seen where the first one ends
    assert late.starts == (0, 2) and late.joints == (0, 15)
    assert torch.allclose(late.weights()[1, 13:], torch.tensor([0, 0, 1 / 3, 2 / 3, 1, 1]))
    assert [default_overlap(length) for length in (1, 5, 9, 17, 33)] == [0, 0, 1, 2, 4]
    assert all(length / (length - default_overlap(length)) < 1.15 for length in range(1, 100))


@pytest.mark.parametrize(("length", "overlap"), MAPS)
def test_clips_come_from_a_stream_and_go_back_into_one(length, overlap):
    """Numbered frames: the cutter cuts what the map says, blending follows its weights, and equal clips come out."""
    for frames in (1, 2, 8, 9, 10, 17, 18, 31, 47):
        chunks = ChunkMap(frames, length, overlap)
        video = torch.arange(frames).float().expand(3, 1, 1, -1).movedim(3, 1)
        clips = cut(video, chunks)
        assert [clip[0, 0].item() for clip in clips] == list(chunks.starts)
        assert all(clip.shape == (3, length, 1, 1) for clip in clips)
        assert clips[-1][0, -1].item() == frames - 1
        assert torch.equal(torch.cat(list(blend(clips, chunks)), dim=1), video)
        marked = [torch.full((3, length, 1, 1), float(clip)) for clip in range(len(chunks))]
        expected = torch.arange(len(chunks)).float() @ chunks.weights()
        mixed = torch.cat(list(blend(marked, chunks)), dim=1)
        assert torch.allclose(mixed[1, :, 0, 0], expected, atol=1e-5)


def test_the_cutter_keeps_one_clip():
    alive = [0, 0]

    class Counted:
        def __del__(self):
            alive[0] -= 1

    def frames():
        for _ in range(500):
            frame = torch.zeros(3, 1, 1)
            frame.counted = Counted()
            alive[0] += 1
            alive[1] = max(alive)
            yield frame

    cutter = ClipCutter(frames(), 9, 1)
    assert sum(1 for _ in cutter) == len(ChunkMap(500, 9, 1)) and cutter.num_frames == 500
    assert alive[1] <= 9 + 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 9, 1), "num_frames must be a whole number of at least 1; got 0"),
        ((9, 9, 9), r"overlap must be 0..8 frames of clips of 9, got 9"),
        ((9, 9, -1), r"overlap must be 0..8"),
        ((9.5, 9, 1), "num_frames must be a whole number of at least 1; got 9.5"),
    ],
)
def test_bad_maps_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ChunkMap(*arguments)


# ------------------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("kind", ["uint8", "float"])
def test_one_clip_is_decode_of_encode(tokenizer, kind):
    clip = waves(LENGTH) if kind == "uint8" else to_float(waves(LENGTH))
    expected = tokenizer.decode(tokenizer.encode(clip[None]).ids)[0]
    for source in (clip, clip[None]):
        tokens = tokenizer.encode_long(source)
        assert torch.equal(tokens.ids, tokenizer.encode(clip[None]).ids)
        assert torch.equal(tokenizer.decode_long(tokens), expected)
    assert torch.equal(tokenizer.reconstruct(clip), expected)


@pytest.mark.parametrize("frames", [1, 2, 8, 10, 17, 18, 30])
def test_any_number_of_frames(tokenizer, frames):
    """Every clip is encoded by itself; a short video's last frame is repeated, and cut off again."""
    video = waves(frames)
    tokens = tokenizer.encode_long(video, batch_size=2)
    chunks = tokens.chunks
    padded = torch.cat([video, video[:, -1:].expand(-1, max(0, chunks.length - chunks.num_frames), -1, -1)], dim=1)
    for row, start in enumerate(chunks.starts):
        clip = padded[:, start : start + LENGTH][None]
        assert torch.equal(tokens.ids[row], tokenizer.encode(clip).ids[0])
        assert tokens.words(row, 2) == tokenizer.encode(clip).words(max_queries=2)
    decoded = tokenizer.decode_long(tokens, batch_size=3)
    assert decoded.shape == (3, frames, 16, 16) and decoded.dtype == torch.float32
    first = tokenizer.decode(tokens.ids[:1])[0]
    alone = LENGTH - chunks.overlap if len(chunks) > 1 else frames
    assert torch.equal(decoded[:, :alone], first[:, :alone])
    assert torch.equal(torch.cat(list(tokenizer.decode_blocks(tokens)), dim=1), decoded)
    assert tokens.bits == len(chunks) * tokenizer.layout.bits and tokens.seconds is None


def test_a_tokenizer_of_images_takes_every_frame_by_itself():
    images = tiny.fill(SweetTok(tiny.tokenizer_config(), tiny.prior().spatial))
    video = waves(3)
    tokens = images.encode_long(video)
    assert (tokens.chunks.length, len(tokens.ids)) == (1, 3)
    frames = video.movedim(1, 0)
    assert torch.equal(tokens.ids, images.encode(frames).ids)
    assert torch.equal(images.decode_long(tokens), images.decode(images.encode(frames).ids)[:, :, 0].movedim(0, 1))


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
def test_other_sizes_come_back(tokenizer, resize):
    video = waves(12, 24, 40)
    tokens = tokenizer.encode_long(video, resize=resize)
    small = tokenizer.decode_long(tokens, undo_resize=False)
    assert small.shape == (3, 12, 16, 16)
    seen = (24, 24) if resize == "crop" else (24, 40)
    assert torch.allclose(tokenizer.decode_long(tokens), tokens.fit.undo(small), atol=1e-6)
    assert tokenizer.decode_long(tokens).shape == (3, 12, *seen)


def test_a_file_is_read_once_from_front_to_back(tokenizer, tmp_path):
    """And gives the ids of its clips as `read_clip` reads them."""
    path = tmp_path / "clip.mp4"
    write_video(path, waves(30, 24, 40), 12.5)
    tokens = tokenizer.encode_long(path)
    for row, start in enumerate(tokens.chunks.starts):
        clip = read_clip(path, LENGTH, 16, start=start, resize="crop")
        assert torch.equal(tokens.ids[row], tokenizer.encode(clip[None]).ids[0])
    assert (tokens.fps, tokens.seconds, tokens.chunks.num_frames) == (12.5, 2.4, 30)
    assert tokenizer.encode_long(path, max_frames=11).chunks.starts == (0, 2)
    with open_frames(path, "pad", (16, 16)) as stream:
        padded = torch.stack(list(stream.frames), dim=1)
    assert torch.equal(tokenizer.encode_long(path, resize="pad").ids, tokenizer.encode_long(padded).ids)


def test_every_second_frame(tokenizer, tmp_path):
    """A tokenizer that was trained on every second frame encodes those of a file, at half its rate."""
    write_video(tmp_path / "clip.mkv", waves(30), 12, lossless=True)
    strided = tiny.tokenizer(tiny.tokenizer_config(preprocessing=Preprocessing("crop", stride=2)))
    tokens = strided.encode_long(tmp_path / "clip.mkv")
    assert (tokens.chunks.num_frames, tokens.fps, tokens.seconds, tokens.stride) == (15, 6, 2.5, 2)
    assert torch.equal(tokens.ids, strided.encode_long(waves(30)[:, ::2]).ids)
    for options in ({"stride": 2}, {"stride": 2, "max_frames": 11}):
        few = tokenizer.encode_long(tmp_path / "clip.mkv", **options)
        assert torch.equal(few.ids[0], tokens.ids[0]) and few.chunks.num_frames == options.get("max_frames", 15)
    with pytest.raises(ValueError, match="stride: only for files"):
        tokenizer.encode_long(waves(30), stride=2)


def test_decoding_into_a_file(tokenizer, tmp_path):
    write_video(tmp_path / "in.mp4", waves(20, 24, 41), 29.97)
    tokens = tokenizer.encode_long(tmp_path / "in.mp4", resize="pad")
    assert tokenizer.decode_long(tokens, tmp_path / "out.mp4") == tmp_path / "out.mp4"
    assert tokenizer.reconstruct(tmp_path / "in.mp4", tmp_path / "same.mp4", resize="pad") == tmp_path / "same.mp4"
    info = probe(tmp_path / "out.mp4")
    assert (info.num_frames, info.height, info.width) == (20, 24, 41)
    assert info.fps == pytest.approx(29.97, rel=1e-4)
    decoded = tokenizer.decode_long(tokens)
    for name in ("out.mp4", "same.mp4"):
        shown = to_float(read_clip(tmp_path / name, 20, None))
        assert (shown - decoded).abs().mean() < 0.5 * (shown - decoded.flip(3)).abs().mean()


def test_an_image(tokenizer, tmp_path):
    write_png(tmp_path / "image.png", waves(1)[:, 0])
    tokens = tokenizer.encode_long(tmp_path / "image.png")
    assert torch.equal(tokens.ids, tokenizer.encode_long(waves(1)).ids) and tokens.fps is None
    assert tokenizer.reconstruct(tmp_path / "image.png").shape == (3, 1, 16, 16)


def test_odd_files(tokenizer, videos):
    odd = videos / "odd"
    turned = tokenizer.encode_long(odd / "rotated_90.mov")
    assert (turned.fit.source, turned.chunks.num_frames) == ((568, 320), 3)
    assert tokenizer.encode_long(odd / "unordered.mov").chunks.num_frames == probe(odd / "unordered.mov").num_frames
    assert tokenizer.encode_long(odd / "av1.mkv", max_frames=20).chunks.num_frames == 20
    assert tokenizer.encode_long(odd / "corrupted.mp4", max_frames=17).chunks.num_frames == 17
    with pytest.raises(ClipError, match=r"corrupted.mp4: (frame \d+ is damaged|damaged, .* near frame \d+)"):
        tokenizer.encode_long(odd / "corrupted.mp4")


def test_a_damaged_frame_is_not_passed_on(tokenizer, tmp_path):
    """Nor those decoded from it: the second half of a packet is lost, and decoders fill in by themselves."""
    path = tmp_path / "clip.mp4"
    write_video(path, waves(40, 64, 64), 25)
    with av.open(str(path)) as file:
        packet = [packet for packet in file.demux(video=0) if packet.size][10]
        half = packet.size // 2
        start = packet.pos + packet.size - half
    content = path.read_bytes()
    path.write_bytes(content[:start] + b"\xff" * half + content[start + half :])
    with pytest.raises(ClipError, match=r"clip.mp4: frame \d+ is damaged$"):
        tokenizer.encode_long(path)


def test_large_frames_are_undone_one_by_one(tokenizer):
    tokens = tokenizer.encode_long(waves(12, 24, 40), resize="pad")
    blocks = list(tokenizer.decode_blocks(tokens))
    assert {block.shape for block in blocks} == {(3, 1, 24, 40)} and len(blocks) == 12


# ----------------------------------------------------------------------------------------------------- files of ids


@pytest.fixture(scope="module")
def tokens(tokenizer) -> LongTokens:
    return tokenizer.encode_long(waves(20, 24, 40))


def test_ids_come_back_from_a_file(tokenizer, tokens, tmp_path):
    tokens.save(tmp_path / "new" / "video.safetensors")
    loaded = LongTokens.load(tmp_path / "new" / "video.safetensors")
    assert torch.equal(loaded.ids, tokens.ids) and loaded.ids.dtype == torch.int64
    for name in ("chunks", "fit", "fps", "layout", "tokenizer_hash", "bits"):
        assert getattr(loaded, name) == getattr(tokens, name)
    assert torch.equal(tokenizer.decode_long(loaded), tokenizer.decode_long(tokens))
    assert loaded.words(1, 2) == tokens.words(1, 2) and loaded.output.summary(1) == tokens.output.summary(1)
    assert repr(loaded).startswith("LongTokens(20 frames of 24x40, 3 clips x 60 ids, ")


def test_bad_files_of_ids_are_refused(tokens, tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(FileNotFoundError, match="none.safetensors"):
        LongTokens.load(tmp_path / "none.safetensors")
    path = tmp_path / "bad.safetensors"
    tokens.save(path)
    whole = path.read_bytes()
    for content in (b"", b"text", whole[:-10], whole.replace(b'\\"format\\": 1', b'\\"format\\": 9')):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="bad.safetensors holds no ids of a long video: "):
            LongTokens.load(path)
    save_file({"ids": tokens.ids}, path)
    with pytest.raises(ValueError, match="holds no ids of a long video: it was not written by LongTokens.save"):
        LongTokens.load(path)


def test_the_tokens_of_another_tokenizer_are_refused(tokens):
    other = tiny.tokenizer(seed=1)
    for decode in (other.decode_long, other.decode_blocks):
        with pytest.raises(ValueError, match=f"of the tokenizer {tokens.tokenizer_hash[:12]}, not of"):
            decode(tokens)


def test_a_wrong_output_is_refused_before_work(tokenizer, tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(type(tokenizer), "encode", lambda *_: pytest.fail("encoded"))
    monkeypatch.setattr(type(tokenizer), "decode", lambda *_: pytest.fail("decoded"))
    for name, message in (("video", "expected a file name that ends in .mp4 or .mkv or .mov"), (".mp4", "expected")):
        with pytest.raises(ValueError, match=message):
            tokenizer.decode_long(tokens, tmp_path / name)
        with pytest.raises(ValueError, match=message):
            tokenizer.reconstruct(waves(9), tmp_path / name)


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ("none.mp4", {}, ClipError, "none.mp4: no such file"),
        ("", {}, ClipError, "not a file"),
        ("text.mp4", {}, ClipError, "text.mp4: "),
        (torch.zeros(2, 3, 9, 16, 16), {}, ValueError, r"\(3, frames, height, width\), got \(2, 3, 9, 16, 16\)"),
        (torch.zeros(3, 16, 16), {}, ValueError, r"\(3, frames, height, width\)"),
        (torch.zeros(3, 9, 16, 16, dtype=torch.long), {}, ValueError, "uint8 or floating point"),
        (torch.full((3, 20, 16, 16), 0.7), {}, ValueError, r"must lie in \[-0.5, 0.5\]"),
        ([1], {}, ValueError, "a path or a tensor .* got list"),
        (torch.zeros(3, 9, 16, 16), {"overlap": 9}, ValueError, r"overlap must be 0..8 frames of clips of 9, got 9"),
        (torch.zeros(3, 9, 16, 16), {"resize": "fill"}, ValueError, "resize must be one of stretch, crop, pad"),
        (torch.zeros(3, 9, 16, 16), {"batch_size": 0}, ValueError, "batch_size must be a whole number of at least 1"),
        (torch.zeros(3, 9, 16, 16), {"max_frames": 2.5}, ValueError, "max_frames must be .* at least 1; got 2.5"),
    ],
)
def test_bad_sources_are_refused(tokenizer, tmp_path, source, options, error, message):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(error, match=message):
        tokenizer.encode_long(tmp_path / source if isinstance(source, str) else source, **options)


def test_reading_stops_when_encoding_fails(tokenizer, tmp_path, monkeypatch):
    """The file is closed before the error comes, with the reading thread at rest."""
    from sweettok.data.backends import PyAVVideo

    write_video(tmp_path / "clip.mp4", waves(40), 25)
    readers = []  # threads that read when the file was closed
    close = PyAVVideo.close

    def spied(video: PyAVVideo) -> None:
        readers.append([thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")])
        close(video)

    monkeypatch.setattr(PyAVVideo, "close", spied)
    monkeypatch.setattr(type(tokenizer), "encode", lambda *_: (_ for _ in ()).throw(RuntimeError("no memory")))
    with pytest.raises(RuntimeError, match="no memory"):
        tokenizer.encode_long(tmp_path / "clip.mp4", batch_size=1)
    assert any(readers) and readers[-1] == []


def test_who_stops_early_leaves_no_thread():
    made = []

    def items():
        for number in range(100):
            made.append(number)
            yield number

    with closing(one_ahead(items())) as ahead:
        assert next(ahead) == 0
    assert len(made) <= 2 and not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]
    assert list(one_ahead(items())) == list(range(100))


# ------------------------------------------------------------------------------------------------------------ seams


def jumping(chunks: ChunkMap, size: int = 4) -> torch.Tensor:
    """Clips that alternate between two grey levels, blended: float (3, T, H, W)."""
    clips = [torch.full((3, chunks.length, size, size), 0.1 * (clip % 2)) for clip in range(len(chunks))]
    return torch.cat(list(blend(clips, chunks)), dim=1)


def test_a_constant_video_has_no_seam():
    for overlap in (0, 1, 4):
        chunks = ChunkMap(50, LENGTH, overlap)
        assert seam_metric(torch.full((3, 50, 4, 4), 77, dtype=torch.uint8), chunks) == 0
        clips = [torch.full((3, LENGTH, 4, 4), 0.123)] * len(chunks)
        blended = torch.cat(list(blend(clips, chunks)), dim=1)
        assert seam_metric(blended, chunks) == 0


def test_hard_cuts_are_seen_and_blending_lowers_them():
    values = []
    for overlap in (0, 1, 2, 4):
        chunks = ChunkMap(LENGTH + 5 * (LENGTH - overlap), LENGTH, overlap)
        values.append(seam_metric(jumping(chunks), chunks))
        assert values[-1] == pytest.approx(0.1 * 255 / (overlap + 1), rel=1e-5)
    assert values == sorted(values, reverse=True)


def test_motion_of_the_reference_does_not_count():
    chunks = ChunkMap(41, LENGTH, 1)
    video = to_float(waves(41, speed=0.05))
    quick = video + 0.2 * seam_places(chunks).float().cumsum(0).remainder(2).new_zeros(41)[:, None, None]
    assert seam_metric(quick, chunks, reference=quick) == 0
    burst = torch.zeros(3, 41, 4, 4)  # moves at the seams alone
    burst[:, 1:] = 0.05 * seam_places(chunks).float().cumsum(0).remainder(2)[:, None, None]
    assert seam_metric(burst, chunks) == pytest.approx(0.05 * 255, rel=1e-5)
    assert seam_metric(burst, chunks, reference=burst) == 0


def test_seams_do_not_depend_on_blocks_or_type():
    video = waves(41)
    whole, parts, floats = FrameSteps(video), FrameSteps(), FrameSteps(to_float(video))
    for block in video.split(4, dim=1):
        parts.add(block)
    assert whole.values.shape == (40,)
    assert torch.allclose(parts.values, whole.values) and torch.allclose(floats.values, whole.values, atol=1e-4)
    assert seam_metric(video[:, :1], ChunkMap(1, LENGTH, 1)) == seam_metric(video[:, :9], ChunkMap(9, LENGTH, 1)) == 0
    with pytest.raises(ValueError, match="the chunk map is of 40 frames, the video has 41"):
        seam_metric(video, ChunkMap(40, LENGTH, 1))


def test_seams_of_a_tokenizer(tokenizer):
    """The tiny tokenizer's clips do not meet; blending hides part of that."""
    values = []
    for overlap in (0, 2, 4):
        tokens = tokenizer.encode_long(waves(60), overlap=overlap)
        decoded = tokenizer.decode_long(tokens)
        values.append(seam_metric(decoded, tokens.chunks, to_float(waves(60))))
    assert values[0] > values[1] > values[2]
