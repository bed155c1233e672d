"""The tokenizer as a user meets it: files in, features and sizes out, results that read well in a notebook."""

import itertools
import json
import threading
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file

from sweettok import pixels
from sweettok.cli.main import main
from sweettok.data.backends import ClipError
from sweettok.data.preprocess import Preprocessing
from sweettok.data.resize import Fit
from sweettok.data.tokens import TokenDataset
from sweettok.data.writer import write_video
from sweettok.tokenizer.model import SweetTok
from sweettok.tokenizer.output import LongTokens
from sweettok.words.summary import as_json


@pytest.fixture(scope="module")
def model():
    """Its preprocessing is not the default one: the middle of the frames, the first clip of a video."""
    return tiny.tokenizer(tiny.tokenizer_config(preprocessing=Preprocessing("crop", "first")))


@pytest.fixture(scope="module")
def images():
    """A tokenizer of images: the spatial branch alone."""
    config = tiny.tokenizer_config(preprocessing=Preprocessing("crop", "first"))
    return tiny.fill(SweetTok(config, tiny.prior().spatial))


@pytest.fixture(scope="module")
def video():
    """uint8 (3, 20, 16, 16)."""
    return pixels.to_uint8(tiny.clip(num_frames=20))[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory, video):
    """The video, its first 5 frames, a wide video, and its first frames as images; no.mp4 is no video."""
    folder = tmp_path_factory.mktemp("face")
    wide = pixels.to_uint8(tiny.clip(1, height=20, width=40))[0]
    for name, frames in (("waves", video), ("short", video[:, :5]), ("wide", wide)):
        write_video(folder / f"{name}.mkv", frames, 10, lossless=True)
    for name, frames in (("still", video), ("wide", wide)):
        Image.fromarray(frames[:, 0].permute(1, 2, 0).numpy()).save(folder / f"{name}.png")
    (folder / "no.mp4").write_text("no video")
    return folder


# ------------------------------------------------------------------------------------------------------------ files


def test_a_file_is_read_as_configured(model, files, video):
    expected = model.encode(video[None, :, :9])
    for source in (files / "waves.mkv", str(files / "waves.mkv"), [files / "waves.mkv"]):
        out = model.encode(source)
        assert torch.equal(out.ids, expected.ids) and out.words() == expected.words()
    chosen = model.encode(files / "waves.mkv", start=np.int64(2), stride=2)
    assert torch.equal(chosen.ids, model.encode(video[None, :, 2:20:2]).ids)
    assert not torch.equal(chosen.ids, expected.ids)
    for position, start in (("first", 0), ("center", 6), ("last", 11)):
        placed = model.encode(files / "waves.mkv", position=position)
        assert torch.equal(placed.ids, model.encode(video[None, :, start : start + 9]).ids)


def test_a_short_file_repeats_its_last_frame(model, files, video):
    repeated = torch.cat((video[:, :5], video[:, 4:5].expand(-1, 4, -1, -1)), dim=1)
    assert torch.equal(model.encode(files / "short.mkv").ids, model.encode(repeated[None]).ids)


def test_an_image_file_is_an_image(model, images, files, video):
    for tok in (model, images):
        out = tok.encode(files / "still.png")
        assert out.layout == tok.layout.spatial
        assert torch.equal(out.ids, tok.encode(video[None, :, 0]).ids)
    assert torch.equal(images.encode(files / "waves.mkv").ids, images.encode(video[None, :, 0]).ids)


def test_files_of_one_batch(model, files):
    names = [files / "waves.mkv", str(files / "short.mkv")]
    assert torch.equal(model.encode(names).ids, torch.cat([model.encode(name).ids for name in names]))
    with pytest.raises(ValueError, match=r"waves.mkv has 9 frames, .*still.png 1: encode images and videos separately"):
        model.encode([files / "waves.mkv", files / "still.png"])


@pytest.mark.parametrize("resize", ["crop", "pad", "stretch"])
def test_resizing_is_a_choice(model, files, resize):
    """Frames are scaled by the decoder, as everywhere, and placed as `Fit` says."""
    size, wide = (16, 16), (20, 40)
    clip = model.read(files / "wide.mkv", resize=resize)[0]
    assert clip.shape == (3, 9, 16, 16) and clip.dtype == torch.uint8
    plain = pixels.to_uint8(tiny.clip(1, height=20, width=40))[0]
    expected = Fit(resize, wide, size).apply(plain).float()
    assert (clip.float() - expected).abs().mean() < 6
    others = [Fit(other, wide, size).apply(plain).float() for other in ("crop", "pad", "stretch") if other != resize]
    assert all((clip.float() - other).abs().mean() > 12 for other in others)
    whole = model.encode_long(files / "wide.mkv", resize=resize)
    assert torch.equal(model.encode(files / "wide.mkv", resize=resize).ids, whole.ids)
    image = model.read(files / "wide.png", resize=resize)[0]
    assert (image.float() - expected[:, :1]).abs().max() <= 1


def test_options_override_what_is_configured(model, files, video):
    assert torch.equal(model.encode(files / "wide.mkv").ids, model.encode(files / "wide.mkv", resize="crop").ids)
    plain = tiny.tokenizer()  # stretch, center
    assert torch.equal(plain.encode(files / "waves.mkv").ids, plain.encode(video[None, :, 6:15]).ids)
    same = plain.encode(files / "wide.mkv", resize="crop", position="first")
    assert torch.equal(same.ids, model.encode(files / "wide.mkv").ids)


def test_one_video_gives_equal_ids_everywhere(files, tmp_path, fresh_accelerator):
    """By every method and command, for a model whose preprocessing is not the default, also after saving it."""
    config = tiny.tokenizer_config(preprocessing=Preprocessing("crop", "first", stride=2))
    path, folder = tmp_path / "video.mkv", tmp_path / "model"
    write_video(path, pixels.to_uint8(tiny.clip(num_frames=40, height=24, width=40))[0], 10, lossless=True)
    tiny.tokenizer(config).save_pretrained(folder)
    model = SweetTok.from_pretrained(folder)
    expected = model.encode(path)
    assert torch.equal(expected.ids, tiny.tokenizer(config).encode(path).ids)
    assert not torch.equal(expected.ids, tiny.tokenizer().encode(path).ids)
    assert torch.equal(next(model.encode_batches([path])).ids, expected.ids)
    assert torch.equal(model.encode(model.read(path)).ids, expected.ids)
    assert torch.equal(model.encode_long(path).ids[:1], expected.ids)
    assert torch.equal(model.encode(model.read([path, path])).ids[1:], expected.ids)

    given = ["--checkpoint", str(folder)]
    assert main(["words", "show", str(path), *given, "--out", str(tmp_path / "words.json")]) == 0
    words = json.loads((tmp_path / "words.json").read_text())["clips"]["video"]
    assert words == json.loads(json.dumps(as_json(expected.summary())))
    (tmp_path / "list.txt").write_text("video.mkv\n")
    shards = ["--data", str(tmp_path / "list.txt"), "--out", str(tmp_path / "shards"), "--workers", "0"]
    assert main(["tokenize", *given, *shards]) == 0
    assert torch.equal(TokenDataset(tmp_path / "shards")[0]["ids"], expected.ids[0])
    assert main(["encode", str(path), *given, "--out", str(tmp_path / "ids.safetensors")]) == 0
    assert torch.equal(LongTokens.load(tmp_path / "ids.safetensors").ids[:1], expected.ids)
    assert main(["eval", "reconstruct", str(path), *given, "--out", str(tmp_path / "seen")]) == 0
    assert torch.equal(load_file(tmp_path / "seen" / "video.safetensors")["ids"], expected.ids)


WRONG_FILES = {
    "missing": (lambda files: files / "gone.mp4", "gone.mp4: no such file"),
    "missing image": (lambda files: files / "gone.png", "gone.png: no such file"),
    "a folder": (lambda files: files, "not a file"),
    "no video": (lambda files: files / "no.mp4", "no.mp4: "),
    "one of a list": (lambda files: [files / "waves.mkv", files / "gone.mp4"], "gone.mp4: no such file"),
    "an empty list": (lambda files: [], "a list must hold paths, at least one; got an empty list"),
    "a list of clips": (lambda files: [tiny.clip()], "must hold paths, at least one; got Tensor .*encode_batches"),
    "a mixed list": (lambda files: [files / "waves.mkv", tiny.clip()], "must hold paths, at least one; got Tensor"),
    "a number": (lambda files: 3, "video must be a torch tensor, got int"),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_wrong_files_are_refused(model, files, case):
    source, message = WRONG_FILES[case]
    for take in (model.encode, model.features):
        with pytest.raises(ValueError, match=message):
            take(source(files))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": "squeeze"}, "resize must be one of stretch, crop, pad; got 'squeeze'"),
        ({"start": -1}, "start must be a whole number of at least 0; got -1"),
        ({"start": 1.5}, "start must be a whole number"),
        ({"position": "random"}, "position must be one of first, center, last; got 'random'"),
        ({"stride": 0}, "stride must be a whole number of at least 1; got 0"),
        ({"start": 20}, "starts at frame 20, the video has 20"),
    ],
)
def test_wrong_cuts_are_refused(model, files, options, message):
    with pytest.raises(ValueError, match=message):
        model.encode(files / "waves.mkv", **options)


def test_cuts_of_tensors_are_refused(model):
    with pytest.raises(ValueError, match="resize, stride: only for files; the frames of a tensor are taken as"):
        model.encode(tiny.clip(), resize="crop", stride=1)


# ------------------------------------------------------------------------------------------------------ many clips


def test_many_clips(model, files, video):
    sources = [files / "waves.mkv", tiny.clip(1)[0], video[:, 3:12], str(files / "short.mkv"), files / "waves.mkv"]
    apart = [model.encode(s if not isinstance(s, torch.Tensor) else s[None]).ids for s in sources]
    for batch_size, sizes in ((2, [2, 2, 1]), (8, [5])):
        outputs = list(model.encode_batches(iter(sources), batch_size=batch_size, workers=2))
        assert [len(out) for out in outputs] == sizes
        assert torch.equal(torch.cat([out.ids for out in outputs]), torch.cat(apart))
    cut = next(model.encode_batches(sources[:1], start=2, stride=2, resize="pad"))
    assert torch.equal(cut.ids, model.encode(sources[0], start=2, stride=2).ids)


def test_many_clips_are_read_as_they_are_needed(model):
    taken = itertools.count()
    batches = model.encode_batches((tiny.clip(next(taken))[0] for _ in range(1000)), batch_size=3, workers=2)
    next(batches), next(batches)
    assert next(taken) <= 3 * 3 + 1
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_a_clip_that_cannot_be_read_is_named(model, files):
    batches = model.encode_batches([files / "waves.mkv", files / "no.mp4"], batch_size=1)
    assert len(next(batches)) == 1
    with pytest.raises(ClipError, match="no.mp4: "):
        next(batches)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sources": []}, "there are no clips to encode"),
        ({"sources": "waves.mkv"}, "sources must be several paths or tensors; got 'waves.mkv'"),
        ({"sources": None}, "sources must be several paths or tensors; got None"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1; got 0"),
        ({"workers": 0}, "workers must be a whole number of at least 1; got 0"),
        ({"resize": "squeeze"}, "resize must be one of"),
    ],
)
def test_wrong_arguments_of_many_clips_are_refused_at_once(model, change, message):
    with pytest.raises(ValueError, match=message):
        model.encode_batches(**{"sources": [tiny.clip()[0]], **change})


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (tiny.clip(), r"clip 1: video must have shape .* got \(1, 1, 3, 9, 16, 16\)"),
        (tiny.clip()[0] * 3, r"clip 1: float video must lie in \[-0.5, 0.5\]"),
        (tiny.clip(width=32)[0], "clip 1: frames are 16x32, but this tokenizer's"),
        (tiny.clip()[0, :, :1], "clip 0 has 9 frames, clip 1 1: encode images and videos separately"),
        (17, r"clip 1 must be a path or a tensor \(3, T, H, W\), got int"),
    ],
)
def test_a_clip_that_does_not_fit_is_named(model, clip, message):
    with pytest.raises(ValueError, match=message):
        next(model.encode_batches([tiny.clip()[0], clip]))


# -------------------------------------------------------------------------------------------------- features, words


@pytest.mark.parametrize("config", [tiny.tokenizer_config(), tiny.union_config()], ids=["release", "union"])
def test_features_are_what_is_looked_up(config):
    model, video = tiny.tokenizer(config), tiny.clips(0, 1)
    features = model.features(video, grad=True)
    assert features.spatial.shape == (2, 4, config.latent_dim) and features.temporal.shape == (2, 16, config.latent_dim)
    looked_up = model.spatial_quantizer(features.spatial), model.temporal_quantizer(features.temporal)
    assert torch.equal(model.ids(*looked_up), model.encode(video).ids)
    features.spatial.sum().backward()
    assert model.encoder.spatial_queries.grad.abs().sum() > 0
    assert model.features(video[:, :, 0]).temporal is None


def test_features_keep_no_graph_unless_asked(model):
    """A loop over many clips must not keep their activations."""
    for features in model.features(tiny.clip()):
        assert not features.requires_grad and features.grad_fn is None
    with torch.no_grad():
        assert not model.features(tiny.clip(), grad=True).spatial.requires_grad


def test_features_of_a_file(model, files, video):
    assert torch.equal(model.features(files / "waves.mkv").temporal, model.features(video[None, :, :9]).temporal)


@pytest.mark.parametrize("config", [tiny.tokenizer_config(), tiny.union_config()], ids=["release", "union"])
def test_vectors_are_what_the_decoder_is_given(config):
    model = tiny.tokenizer(config)
    ids = model.encode(tiny.clips(0, 1)).ids
    vectors, latents = model.vectors(ids), model.codes(ids)
    assert vectors.shape == (*ids.shape, 8) and vectors.dtype == torch.float32 and not vectors.requires_grad
    spatial, temporal = model.layout.by_branch([vectors[:, s.places] for s in model.layout.segments])
    for parts, latent in ((spatial, latents[0]), (temporal, latents[1])):
        if config.lookup == "union":
            assert torch.equal(parts[0], latent)
        else:
            assert torch.equal(torch.cat((parts[0].unflatten(1, (-1, 2)).mean(2), parts[1]), dim=-1), latent)
    image = model.encode(tiny.clip()[:, :, 0]).ids
    assert model.vectors(image).shape == (*image.shape, 8)
    with pytest.raises(ValueError, match="is no"):
        model.vectors(ids.flip(1))


def test_embedding_matrix_behind_the_table_of_a_language_model(model):
    out, table = model.encode(tiny.clips(0, 1)), torch.randn(100, 8)
    words = model.embedding_matrix(offset=len(table))
    assert len(words.words) == len(words.vectors) == model.vocab_size == 48 and words.words == out.names
    tokens = words.to_table(out.ids)
    assert torch.equal(torch.cat((table, words.vectors))[tokens], model.vectors(out.ids))
    assert torch.equal(words.from_table(tokens), out.ids)
    for row in (99, 148):
        with pytest.raises(ValueError, match=f"row {row} is no word of this tokenizer: those are 100..147"):
            words.from_table(torch.tensor([[120, row]]))
    with pytest.raises(ValueError, match="offset must be at least 0"):
        model.embedding_matrix(-1)


def test_described_ids_are_those_of_encode(model):
    out = model.encode(tiny.clips(0, 1))
    assert torch.equal(model.describe(out.ids.int()).ids, out.ids)
    assert model.describe(out.ids).words(1) == out.words(1) and model.describe(out.ids).grids == out.grids
    image = model.encode(tiny.clip()[:, :, 0])
    assert model.describe(image.ids).words() == image.words()
    with pytest.raises(ValueError, match="ids must be integers"):
        model.describe(out.ids.float())


# ------------------------------------------------------------------------------------------------------------ sizes


def test_ids_and_bits_of_sizes(model, images):
    assert model.num_tokens() == model.num_tokens(T=9, H=16, W=16) == model.num_tokens(5) == 60
    assert model.num_tokens(T=1) == model.encode(tiny.clip()[:, :, 0]).ids.shape[1] == 12
    assert model.bits() == model.layout.bits and model.bits(T=1) == model.layout.spatial.bits
    assert images.num_tokens() == images.num_tokens(1) == 12 and images.bits() == model.bits(1)


@pytest.mark.parametrize("frames", [10, 17, 18, 200])
def test_ids_of_a_long_video_are_those_of_encode_long(model, frames):
    ids = model.encode_long(tiny.clip(num_frames=frames)[0]).ids
    assert model.num_tokens(frames) == ids.numel() and model.bits(frames) == len(ids) * model.layout.bits


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ({"T": 8}, r"8 frames do not fit: 1 \+ a multiple of 4 fits \(5 or 9\)"),
        ({"T": 0}, "0 frames do not fit"),
        ({"H": 32}, r"frames are 32x16, but this tokenizer's tables are for 16x16: .* at_size\(32, 16\)"),
        ({"T": 100, "W": 24}, "frames are 16x24"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(model, size, message):
    for ask in (model.num_tokens, model.bits):
        with pytest.raises(ValueError, match=message):
            ask(**size)


def test_a_tokenizer_of_images_counts_images_alone(images):
    with pytest.raises(ValueError, match="takes images: clips of 1 frame; got 9 frames"):
        images.num_tokens(9)


@torch.no_grad()
def test_the_same_size_is_the_same_tokenizer(model):
    copy = model.at_size(16, 16)
    assert copy is not model and copy.ids_hash() == model.ids_hash()
    state = copy.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(copy(tiny.clip()), model(tiny.clip())) and not copy.training
    assert copy.encoder.patches.tubes[1].weight.data_ptr() != model.encoder.patches.tubes[1].weight.data_ptr()


@torch.no_grad()
def test_other_sizes(model, images):
    large = model.at_size(32, 24)
    video = tiny.clips(0, 1, height=32, width=24)
    out = large.encode(video)
    assert out.ids.shape == (2, 4 * 3 + 8 * 6 * 3) and large.num_tokens() == out.ids.shape[1]
    assert out.grids == {"spatial": (2, 2), "temporal": (8, 6)}
    assert large.decode(out.ids).shape == video.shape and torch.equal(large.decode(out.ids), large(video))
    assert large.ids_hash() != model.ids_hash() and model.config.height == 16
    with pytest.raises(ValueError, match=r"frames are 16x16, but .* at_size\(16, 16\)"):
        large.encode(tiny.clip())
    assert images.at_size(32, 32).encode(tiny.clip(height=32, width=32)[:, :, 0]).ids.shape == (1, 12)


@torch.no_grad()
def test_places_keep_their_entries_at_other_sizes(model):
    """What rises from left to right still does, and nothing rises from top to bottom."""
    slope = model.at_size(16, 16)
    for name in ("temporal_queries", "temporal_positions"):
        getattr(slope.encoder, name).copy_(torch.arange(4.0).repeat(4)[:, None].expand(-1, 24))
    wide = slope.at_size(16, 32).encoder.temporal_queries.view(4, 8, 24)
    assert (wide.diff(dim=1)[:, 1:-1] > 0.1).all() and wide.diff(dim=0).abs().max() < 1e-5
    assert wide.mean() == pytest.approx(1.5, abs=0.01)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((20, 16), r"height 20 does not fit: a multiple of 8 is needed \(16 or 24\)"),
        ((16, 0), "width 0 does not fit"),
        ((16, 32.0), "height and width must be whole numbers of pixels; got 16 and 32.0"),
    ],
)
def test_sizes_that_patches_do_not_divide_are_refused(model, size, message):
    with pytest.raises(ValueError, match=message):
        model.at_size(*size)


def test_sizes_that_only_the_tokenizer_s_windows_do_not_divide():
    proxy = tiny.proxy_config(encoder_spatial="tt")
    model = tiny.tokenizer(tiny.tokenizer_config(proxy))
    with pytest.raises(ValueError, match="latent grid 5x4 .* windows of 2x2: height and width must be multiples of 8"):
        model.at_size(20, 16)


# ---------------------------------------------------------------------------------------------------------- results


def test_results_are_batches(model):
    out = model.encode(tiny.clips(0, 1, 2))
    assert len(out) == 3
    assert torch.equal(out[1].ids, out.ids[1:2]) and out[1].words() == out.words(1)
    assert torch.equal(out[-1].ids, out.ids[2:]) and torch.equal(out[1:].ids, out.ids[1:])
    assert [clip.summary(0, 1) for clip in out] == [out.summary(clip, 1) for clip in range(3)]
    with pytest.raises(IndexError):
        out[3]
    assert out.to("meta").ids.device.type == "meta" and out.ids.device.type == "cpu"


def test_results_tell_what_they_are(model):
    out = model.encode(tiny.clips(0, 1))
    first = out.words()
    assert repr(out) == (
        "TokenOutput(2 x 60 ids (8 adjective, 4 noun, 32 adverb, 16 verb) on cpu; the first begins "
        f"{[first['spatial'][0], first['temporal'][0]]})"
    )
    assert repr(out[:0]) == "TokenOutput(0 x 60 ids (8 adjective, 4 noun, 32 adverb, 16 verb) on cpu)"
    assert "12 ids (8 adjective, 4 noun)" in repr(model.encode(tiny.clip()[:, :, 0]))


# ------------------------------------------------------------------------------------------------------ long videos


def test_results_know_the_length_of_their_clips(model, video):
    out = model.encode(video[None, :, :5])
    assert out.num_frames == 5 and torch.equal(model.decode(out), model.decode(out.ids, 5))
    assert torch.equal(model.decode(out, 9), model.decode(out.ids))
    assert model.describe(out.ids).num_frames is None and model.decode(model.describe(out.ids)).shape[2] == 9


def test_a_file_is_not_reconstructed_onto_itself(model, files, tmp_path):
    source = tmp_path / "waves.mkv"
    source.write_bytes((files / "waves.mkv").read_bytes())
    with pytest.raises(ValueError, match="waves.mkv is an input and would be overwritten"):
        model.reconstruct(source, out=tmp_path / ".." / tmp_path.name / "waves.mkv")
    assert source.read_bytes() == (files / "waves.mkv").read_bytes()


def test_frames_that_would_be_images_are_told(model, video):
    frames = video[:, :9].transpose(0, 1)
    with pytest.warns(UserWarning, match=r"9 images: if they are the frames of one clip, give video.transpose\(0, 1\)"):
        assert model.encode(frames).layout == model.layout.spatial


def test_the_advice_on_shapes_makes_them_fit(model, video):
    """Without the advice on images before it."""
    clip = video[None, :, :9]
    given = {"(T, H, W, 3)": clip[0].permute(1, 2, 3, 0), "(3, T, H, W)": clip[0]}
    given |= {"(1, T, 3, H, W)": clip.transpose(1, 2), "(1, T, H, W, 3)": clip.permute(0, 2, 3, 4, 1)}
    for shape, wrong in given.items():
        with pytest.raises(ValueError, match=r": give video\.") as refused, warnings.catch_warnings():
            warnings.simplefilter("error")
            model.encode(wrong)
        assert torch.equal(eval(str(refused.value).rpartition("give ")[2], {"video": wrong}), clip), shape
    with pytest.raises(ValueError, match=r"give video.transpose\(0, 1\).unsqueeze\(0\)$"):
        model.encode_long(video.transpose(0, 1))


def test_weights_of_half_precision_are_refused(video):
    half = tiny.tokenizer().half()
    ids = torch.zeros(1, half.layout.length, dtype=torch.long)
    for call in (lambda: half.encode(video[None, :, :9]), lambda: half.decode(ids)):
        with pytest.raises(ValueError, match="weights are torch.float16, expected float32: call .float()"):
            call()


def test_long_videos(model, files, video, tmp_path):
    tokens = model.encode_long(files / "waves.mkv", overlap=2)
    assert torch.equal(tokens.ids[:1], model.encode(files / "waves.mkv").ids) and len(tokens.ids) == 3
    decoded = model.decode_long(tokens)
    assert decoded.shape == (3, 20, 16, 16)
    assert torch.equal(decoded, model.reconstruct(files / "waves.mkv", overlap=2))
    assert model.decode_long(tokens, out=tmp_path / "out.mp4") == tmp_path / "out.mp4"
    clip = tiny.clip()
    assert torch.equal(model.reconstruct(clip[0]), model.decode(model.encode(clip).ids)[0])


def test_processes_that_do_not_know_of_each_other_are_refused(files, tmp_path, monkeypatch, capsys):
    tiny.tokenizer().save_pretrained(tmp_path)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("accelerate.PartialState", lambda **_: SimpleNamespace(num_processes=1))
    assert main(["words", "show", str(files / "waves.mkv"), "--checkpoint", str(tmp_path)]) == 2
    assert "2 processes were launched, but each sees 1" in capsys.readouterr().err
