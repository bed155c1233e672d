"""VTok: counts, times and values of its tokens, from clips, streams, files and stored features; errors."""

import json
import threading
import warnings
import weakref

import pytest
import tiny
import torch
from safetensors.torch import save_file

from sweettok import VisualTokens, VTok
from sweettok.config import build, to_dict
from sweettok.data.preprocess import Preprocessing
from sweettok.data.writer import write_video
from sweettok.vtok.cache import FeatureDataset, cache_features
from sweettok.vtok.config import VTokConfig
from sweettok.vtok.moments import Moments
from sweettok.vtok.output import KEY, MOTION, FrameFeatures
from sweettok.vtok.sources import WordTokens

SIZES = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "patch_size": 4, "width": 16, "layers": 3, "head_width": 8},
    "quick_gelu": True,
}


def make(seed: int = 0, **changes) -> VTok:
    """8x8 patches, 16 channels, random; with weights of projection that are not those of the start."""
    torch.manual_seed(seed)
    model = VTok(VTokConfig(**{"architecture": SIZES, "pretrained": None, **changes})).eval()
    for parameter in model.projection.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


@pytest.fixture(scope="module")
def model() -> VTok:
    return make()


def clips(num: int = 2, frames: int = 33, height: int = 32, width: int = 32) -> torch.Tensor:
    """uint8 (num, 3, frames, height, width), noise."""
    generator = torch.Generator().manual_seed(frames)
    return torch.randint(256, (num, 3, frames, height, width), generator=generator, dtype=torch.uint8)


def close(one, other) -> None:
    assert one.kinds.equal(other.kinds) and one.times.equal(other.times) and one.key_frame.equal(other.key_frame)
    torch.testing.assert_close(one.values, other.values, atol=2e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------- counts


def test_five_seconds_are_46_tokens(model):
    assert model.num_tokens(seconds=5) == model.num_tokens(frames=121) == 46
    tokens = model.encode(clips(1, 121), fps=24)
    assert tokens.values.shape == (1, 46, model.dim) and tokens.values.dtype == torch.float32
    assert tokens.kinds.tolist() == [KEY] * 16 + [MOTION] * 30
    assert tokens.times[0].tolist() == pytest.approx([0] * 16 + [i / 6 for i in range(1, 31)])


@pytest.mark.parametrize("moments", range(1, 10))
def test_a_token_for_each_later_moment(model, moments):
    frames = 4 * (moments - 1) + 1
    tokens = model.encode(clips(2, frames), fps=24)
    assert tokens.values.shape[:2] == tokens.times.shape == (2, 16 + moments - 1)
    assert model.num_tokens(frames=frames) == 16 + moments - 1
    if moments > 1:
        assert model.num_tokens(frames=frames + 3) == 16 + moments - 1  # an incomplete group gives none


@pytest.mark.parametrize("fps", [5.0, 23.976, 25.0, 29.97, 60.0])
def test_sampled_frames_are_the_nearest_to_each_moment(model, fps):
    frames = round(2 * fps) + 1
    tokens = model.encode(clips(1, frames), fps=fps)
    times = tokens.times[0, 16:]
    assert len(times) + 16 == model.num_tokens(frames=frames, fps=fps)
    assert (times.diff() > 0).all()
    if fps > 6:
        assert (times - torch.arange(1, len(times) + 1) / 6).abs().max() <= 0.5 / fps + 1e-5


def test_frames_per_token_and_stride():
    model = make(frames_per_token=3)
    tokens = model.encode(clips(1, 13), fps=10)
    assert tokens.times[0, 16:].tolist() == pytest.approx([0.3, 0.6, 0.9, 1.2]) and model.num_tokens(frames=13) == 20
    strided = model.encode(clips(1, 13), fps=10, stride=2, max_frames=4)  # frames 0, 2, 4, 6
    assert strided.times[0, 16:].tolist() == pytest.approx([0.6])
    assert make(frames_per_token=3, preprocessing=Preprocessing(stride=2)).num_tokens(frames=13) == 18


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (5, 5), (8, 8), (2, 3)])
def test_grids(grid):
    model = make(grid=grid)
    tokens, rows = model.encode(clips(1, 5), fps=24), grid[0] * grid[1]
    assert tokens.kinds.tolist() == [KEY] * rows + [MOTION]
    if grid == (8, 8):
        frame = clips(1, 5)[:, :, 0].float() / 255 - 0.5
        torch.testing.assert_close(tokens.values[:, :64], model.encoder(frame).flatten(2).mT)


# ------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize("key_frame", ["first", "medoid"])
def test_a_static_clip_has_zero_residuals(model, key_frame):
    still = clips(2, 1).expand(-1, -1, 33, -1, -1)
    for batch_size in (3, 64):
        found = model.features(still, fps=24, key_frame=key_frame, batch_size=batch_size)
        assert found.residuals.shape[1] == 8 and not found.residuals.any()
    assert model.features(clips(), fps=24).residuals.abs().amin(dim=(0, 2, 3)).max() > 0


@pytest.mark.parametrize("projection", ["mlp", "patch_mlp"])
def test_permuted_frames_give_permuted_tokens(projection):
    model, order = make(projection=projection), torch.tensor([3, 1, 7, 2, 8, 4, 6, 5])
    video = clips(2, 9)
    tokens = model.encode(video, fps=6)
    other = model.encode(video[:, :, torch.cat((torch.zeros(1, dtype=torch.int64), order))], fps=6)
    torch.testing.assert_close(other.values[:, :16], tokens.values[:, :16])
    torch.testing.assert_close(other.values[:, 16:], tokens.values[:, 15 + order], atol=2e-5, rtol=1e-5)
    assert (tokens.values[:, 16:-1] - tokens.values[:, 17:]).abs().amax(2).min() > 1e-3


def test_projections_start_as_the_mean_difference_and_are_trained():
    video, models = clips(2, 9), {}
    for kind in ("identity", "mlp", "patch_mlp"):
        torch.manual_seed(0)
        models[kind] = VTok(VTokConfig(architecture=SIZES, pretrained=None, projection=kind))
    expected = models["identity"].encode(video, fps=6)
    maps = models["identity"].encoder(video.transpose(1, 2).flatten(0, 1).float() / 255 - 0.5)
    mean = maps.unflatten(0, (2, 9)).mean(dim=(3, 4))
    torch.testing.assert_close(expected.values[:, 16:], mean[:, 1:] - mean[:, :1], atol=1e-5, rtol=1e-5)
    for model in models.values():
        model.encoder.load_state_dict(models["identity"].encoder.state_dict())
        torch.testing.assert_close(model.encode(video, fps=6).values, expected.values, atol=1e-5, rtol=1e-5)
    for kind in ("mlp", "patch_mlp"):
        model = models[kind].train()
        model(video, 6).values.square().sum().backward()
        assert model.projection.leave.weight.grad.any() and not model.encoder.visual.training
        assert all(parameter.grad is None for parameter in model.encoder.parameters())


def test_positions_tell_patches_apart():
    """A patch_mlp sees where a difference is; what is pooled first does not."""
    model = make(projection="patch_mlp")
    residuals = torch.randn(1, 1, 64, model.dim)
    moved = residuals.roll(8, dims=2)
    one, other = model.projection(residuals), model.projection(moved)
    assert (one - other).abs().max() > 1e-2
    model.projection.positions.data.zero_()
    torch.testing.assert_close(model.projection(residuals), model.projection(moved))
    assert make(projection="patch_mlp", motion_grid=(2, 2)).features(clips(1, 5), 24).residuals.shape == (1, 1, 4, 16)


# ----------------------------------------------------------------------------------------------- key frames, segments


def test_key_frames(model):
    video = clips(2, 9)
    for key_frame, index in (("first", 0), ("middle", 4), (7, 7)):
        tokens = model.encode(video, fps=6, key_frame=key_frame)
        alone = model.encode(video[:, :, index])
        assert tokens.key_frame.tolist() == [index] * 2 and tokens.times[0, 0] == pytest.approx(index / 6)
        torch.testing.assert_close(tokens.values[:, :16], alone.values, atol=2e-5, rtol=1e-5)
        assert tokens.times[0, 16:].tolist() == pytest.approx([i / 6 for i in range(9) if i != index])
        close(tokens, make(key_frame=key_frame).encode(video, fps=6))


def test_the_medoid_is_the_frame_nearest_to_the_others(model):
    video = clips(2, 9)
    video[0, :, 1:] = video[0, :, 5:6]  # all frames but the first are equal
    tokens = model.encode(video, fps=6, key_frame="medoid")
    pooled = torch.stack([model.encode(video[1:, :, i]).values[0] for i in range(9)]).flatten(1).double()
    assert tokens.key_frame.tolist() == [1, int(torch.cdist(pooled, pooled).square().sum(1).argmin())]
    seen = []
    chosen = model.encode(video, fps=6, key_frame=lambda features: seen.append(features) or len(seen))
    assert chosen.key_frame.tolist() == [1, 2]
    torch.testing.assert_close(seen[1].flatten(1).double(), pooled, atol=2e-5, rtol=1e-5)


def test_segments_open_where_the_picture_changes():
    video = clips(1, 1).expand(-1, -1, 10, -1, -1).clone()
    video[:, :, 4:] = 255 - video[:, :, :1]
    video[:, :, 8:] = clips(1, 2)[:, :, :1]
    found, plain = make(segment_threshold=0.05).features(video, 6), make().features(video, 6)
    assert found.kinds.tolist() == ([KEY] * 16 + [MOTION] * 3) * 2 + [KEY] * 16 + [MOTION]
    assert found.times[0, 19:35].unique().tolist() == pytest.approx([4 / 6]) and not found.residuals.any()
    assert plain.kinds.sum() == 9 and plain.residuals.any()
    model = make(segment_threshold=0.05)
    tokens = model.encode(video, 6)
    torch.testing.assert_close(tokens.values[:, 19:35], model.encode(video[:, :, 4]).values, atol=2e-5, rtol=1e-5)
    close(VisualTokens.join(list(model.stream(video, 6, batch_size=3))), tokens)
    with pytest.raises(ValueError, match="encode them one by one"):
        model.encode(torch.cat((video, video[:, :, :1].expand(-1, -1, 10, -1, -1))), 6)


# ------------------------------------------------------------------------------------------- streams, files, features


@pytest.mark.parametrize("key_frame", ["first", "middle", "medoid", 5])
def test_streams_and_batches_give_equal_tokens(model, key_frame):
    video = clips(2, 50)
    together = model.encode(video, fps=24, key_frame=key_frame)
    parts = [list(model.stream(clip, 24, key_frame=key_frame, batch_size=3)) for clip in video.split(1)]
    assert len(parts[0]) == 5 and max(part.times.shape[1] for part in parts[0]) <= 16 + 3
    close(VisualTokens.stack([VisualTokens.join(clip) for clip in parts]), together)
    close(model.encode(video.float() / 255 - 0.5, fps=24, key_frame=key_frame), together)


def test_memory_of_a_stream_does_not_grow(model):
    """Only some frames of a long clip are alive at once, as the sizes of the encoder's batches show."""
    sizes = []
    hook = model.encoder.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    count = sum(part.times.shape[1] for part in model.stream(clips(1, 400, 8, 8), 24, batch_size=8))
    hook.remove()
    assert count == model.num_tokens(frames=400) and max(sizes) == 8


def test_a_long_file_is_streamed_in_flat_memory(tmp_path, monkeypatch):
    """Ten minutes: of all groups of frames, only a few are alive at once."""
    model, frame = make(tokens_per_second=1.5), clips(1, 600, 16, 16)[0]
    write_video(tmp_path / "long.mp4", [frame] * 6, 6)
    alive, most, group = weakref.WeakSet(), [], Moments._group

    def counted(*arguments):
        found = group(*arguments)
        alive.add(found.frames)
        most.append(len(alive))
        return found

    monkeypatch.setattr(Moments, "_group", counted)
    count = sum(part.times.shape[1] for part in model.stream(tmp_path / "long.mp4", batch_size=16))
    assert count == 16 + 899 and len(most) == 57 and max(most) <= 5


def test_the_next_videos_are_read_while_one_is_encoded(tmp_path, monkeypatch):
    """The first stored video is not encoded before the second one is read."""
    model, read, begin, seen = make(), threading.Semaphore(0), Moments.begin, []

    def noted(moments):
        found = begin(moments)
        read.release()
        return found

    def wait(*_):
        seen.append(None)
        if len(seen) == 3:  # after key frame and other frames of the video that sets the manifest
            assert read.acquire(timeout=60) and read.acquire(timeout=60)

    monkeypatch.setattr(Moments, "begin", noted)
    model.encoder.register_forward_pre_hook(wait)
    stored = cache_features(model, ["a", "b", "c"], list(clips(3, 9).split(1)), tmp_path / "f", fps=6)
    assert len(seen) == 8 and len(stored) == 3


def test_files(model, tmp_path):
    video = clips(1, 26, 48, 64)[0]
    write_video(tmp_path / "a.mp4", [video], 12)
    write_video(tmp_path / "b.mp4", [video.flip(1)], 12)
    one = model.encode(tmp_path / "a.mp4")
    assert one.values.shape == (1, 16 + 12, 16) and one.times[0, -1] == pytest.approx(2)
    both = model.encode([str(tmp_path / "a.mp4"), tmp_path / "b.mp4"])
    torch.testing.assert_close(both.values[:1], one.values)
    assert both.values.shape[0] == 2 and not both.values[0].allclose(both.values[1], atol=1e-2)
    assert model.encode(tmp_path / "a.mp4", fps=24).values.shape[1] == 16 + 6
    close(VisualTokens.join(list(model.stream(tmp_path / "a.mp4", batch_size=5))), one)
    assert not model.encode(tmp_path / "a.mp4", resize="crop").values.allclose(one.values, atol=1e-2)


def test_saved_models_are_equal(model, tmp_path):
    model.save_pretrained(tmp_path / "a")
    saved = json.loads((tmp_path / "a/config.json").read_text())
    again = VTok.from_pretrained(tmp_path / "a")
    assert saved["model"] == "VTok" and again.config == model.config
    assert again.features_hash() == model.features_hash() != make(block=-1).features_hash()
    assert make(projection="identity").features_hash() == model.features_hash()
    close(again.encode(clips(), 24), model.encode(clips(), 24))
    card = (tmp_path / "a/README.md").read_text()
    assert "arxiv:2602.04202" in card and "2412.10443" not in card and "| 46 |" in card
    assert build(VTokConfig, to_dict(model.config)) == model.config


def test_weights_of_a_trained_clip_model(tmp_path):
    import open_clip

    torch.manual_seed(1)
    text = {"width": 8, "heads": 1, "layers": 1, "vocab_size": 9, "context_length": 4}
    trained = open_clip.CLIP(**SIZES, text_cfg=text)
    save_file({f"clip.{name}": tensor.contiguous() for name, tensor in trained.state_dict().items()}, tmp_path / "a.st")
    model = VTok(VTokConfig(architecture=SIZES, pretrained=str(tmp_path / "a.st")))
    assert model.encoder.visual.conv1.weight.equal(trained.visual.conv1.weight)
    frames = clips(2, 1)[:, :, 0].float() / 255 - 0.5
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    taken = trained.visual.eval().forward_intermediates((frames + 0.5 - mean) / std, indices=[1])[
        "image_intermediates"
    ][0]
    torch.testing.assert_close(model.encoder(frames), taken.detach())


def test_features_are_cached_in_shards(tmp_path):
    model, videos = make(projection="patch_mlp", motion_grid=(4, 4)), list(clips(5, 13).split(1))
    keys = [f"clip {i}" for i in range(5)]
    stored = cache_features(model, keys, videos, tmp_path / "f", fps=24, rows_per_shard=2)
    assert len(stored) == 5 and len(list((tmp_path / "f").glob("shard-*"))) == 3
    batch = FrameFeatures.stack([stored[i] for i in (4, 0, 2)])
    close(model.project(batch), model.encode(clips(5, 13)[[4, 0, 2]], 24))
    model.project(batch).values.sum().backward()
    assert model.projection.leave.weight.grad.any()

    class Unread(list):
        def __getitem__(self, row):
            assert row in (0, 2, 3), "only a missing shard is written again"
            return super().__getitem__(row)

    (tmp_path / "f/shard-00001.safetensors").unlink()
    with pytest.raises(ValueError, match="1 of 3 shards are missing"):
        FeatureDataset(tmp_path / "f")
    again = cache_features(model, keys, Unread(videos), tmp_path / "f", fps=24, rows_per_shard=2)
    torch.testing.assert_close(again[3].key, stored[3].key)
    again.check_tokenizer(make(projection="patch_mlp", motion_grid=(4, 4), projection_hidden=3).features_hash())
    with pytest.raises(ValueError, match="are of the encoder and settings"):
        again.check_tokenizer(make(seed=1, projection="patch_mlp", motion_grid=(4, 4)).features_hash())
    with pytest.raises(ValueError, match="choose another folder"):
        cache_features(make(seed=1), keys, videos, tmp_path / "f", fps=24, rows_per_shard=2)
    halves = cache_features(model, keys, videos, tmp_path / "h", fps=24, dtype="float16")
    torch.testing.assert_close(halves[1].key, stored[1].key, atol=2e-3, rtol=1e-3)
    with pytest.raises(ValueError, match="clip 1 has 1 clips of 20 tokens, the first video has 1 clip of 19"):
        cache_features(model, keys[:2], [clips(1, 13), clips(1, 17)], tmp_path / "x", fps=24)


# ------------------------------------------------------------------------------------------------ SweetTok's tokens


@pytest.mark.parametrize("unit", ["words", "queries"])
def test_words_of_sweettok_as_tokens(unit):
    tok = tiny.tokenizer()
    source, video = WordTokens(tok, unit), tiny.clips(0, 1)
    tokens, ids = source.encode(video, fps=8), tok.encode(video).ids
    assert tokens.values.shape == (2, 60 if unit == "words" else 20, source.dim)
    assert (tokens.kinds == KEY).sum() == (12 if unit == "words" else 4)
    assert tokens.times.tolist() == [[0.5] * len(tokens.kinds)] * 2
    if unit == "words":
        assert tokens.values[1, 7].equal(tok.embedding_matrix().vectors[ids[1, 7]])
    image = source.encode(video[:, :, :1])
    assert not image.kinds.any() and not image.times.any()
    with pytest.raises(ValueError, match="fps is unknown"):
        source.encode(video)
    with pytest.raises(ValueError, match="unit must be one of words, queries; got 'ids'"):
        WordTokens(tok, "ids")


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": {}, "encoder": "ViT-L-14-363"}, "no model 'ViT-L-14-363': did you mean ViT-L-14-336"),
        (
            {"architecture": {}, "pretrained": "opnai"},
            "'opnai' is neither a file nor weights of ViT-L-14-336-",
        ),
        (
            {"architecture": {}, "encoder": "ViT-L-14-336", "pretrained": "openai"},
            "trained with another activation: use ViT-L-14-336-quickgelu",
        ),
        ({"architecture": {"embed_dim": 8}}, "vtok.architecture lacks vision_cfg"),
        ({"architecture": {**SIZES, "vision_cfg": {"layer": 3}}}, "not that of an image encoder .* 'layer'"),
        ({"pretrained": "missing.safetensors"}, "missing.safetensors holds no weights"),
        ({"block": 3}, "vtok.block 3 is not a block of this encoder"),
        ({"block": -4}, "vtok.block -4 is not a block of this encoder"),
        ({"grid": (0, 4)}, "vtok.grid must be two whole numbers"),
        ({"tokens_per_second": 0}, "vtok.tokens_per_second must be above 0"),
        ({"key_frame": "last"}, "vtok.key_frame must be one of first, middle, medoid, all; got 'last'"),
        ({"key_frame": -1}, "or an index from 0; got -1"),
        ({"projection": "conv"}, "vtok.projection must be one of"),
        ({"motion_grid": (2, 2)}, "vtok.motion_grid is of projection patch_mlp only; got mlp"),
        ({"segment_threshold": 0.1, "key_frame": "middle"}, "the key frame is the first of each segment"),
    ],
)
def test_settings_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message) as found, warnings.catch_warnings():
        warnings.simplefilter("error")
        make(**changes)
    assert len(str(found.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((clips(1, 5),), "fps is unknown"),
        ((clips(1, 5), 0), "fps must be the number of frames per second, above 0; got 0"),
        ((clips(1, 4), 24), "a clip of 4 frames at 24 frames per second is shorter than one motion token, .* 5 frames"),
        ((clips(1, 5)[0], 24), "must have shape .*: give video.unsqueeze"),
        ((clips(1, 5)[:, :2], 24), "must have shape"),
        ((clips(1, 5).float(), 24), r"must lie in \[-0.5, 0.5\]"),
        ((clips(1, 0), 24), "holds no pixels"),
        (([], 24), "a list must hold paths"),
        ((3, 24), "must be a path, a list of paths or a tensor .*, got int"),
        (("no.mp4",), "no.mp4: no such file"),
        ((clips(1, 9), 6, {"key_frame": 9}), "key_frame 9 is not among the 9 sampled frames, 0..8"),
        ((clips(1, 9), 6, {"key_frame": lambda f: 9}), "must return an index of the 9 sampled frames; got 9"),
        ((clips(1, 9), 6, {"batch_size": 0}), "batch_size must be a whole number of at least 1"),
    ],
)
def test_videos_that_do_not_fit(model, arguments, message):
    source, fps, options = (*arguments, None, {})[:3] if len(arguments) < 3 else arguments
    with pytest.raises(ValueError, match=message):
        model.encode(source, fps, **(options or {}))


def test_counts_that_do_not_fit(model):
    for options, message in (
        ({}, "give either seconds or frames"),
        ({"seconds": -1}, "seconds must be at least 0"),
        ({"seconds": 0.1}, "shorter than one motion token"),
        ({"frames": 0}, "frames must be at least 1"),
        ({"frames": 9, "fps": float("nan")}, "fps must be"),
    ):
        with pytest.raises(ValueError, match=message):
            model.num_tokens(**options)
    with pytest.raises(ValueError, match="stream takes a single video"):
        list(model.stream(clips(), 24))
