"""The tokenizer at tiny size: against plain loops, against kept numbers, and as a user meets it."""

import json
from dataclasses import replace

import naive
import numpy as np
import pytest
import tiny
import torch

from sweettok import pixels
from sweettok.tokenizer.model import SweetTok

PATHS = ("expected", "argmax")


@pytest.fixture(scope="module")
def model():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def video():
    return tiny.clips(0, 1, 2)


@pytest.fixture(scope="module")
def ids(model, video):
    return model.encode(video).ids


# ---------------------------------------------------------------------------------------------------------- numbers

WIDE = tiny.proxy_config(height=16, width=24)
SMALL_PATCHES = tiny.proxy_config(height=8, width=12, patch_size=2, temporal_patch_size=2)
ON_GRID = tiny.proxy_config(block=tiny.block(20, temporal_peg="grid"))
CASES = {
    "release": ({}, 9),
    "wide frames, short clip": ({"proxy": WIDE}, 5),
    "wide query grid, long clip": ({"spatial_query_grid": (2, 4)}, 17),
    "small patches and tubes": ({"proxy": SMALL_PATCHES}, 5),
    "spatial branch reads the first frame": ({"spatial_source": "first_frame"}, 9),
    "temporal branch reads residuals to the first slice": ({"temporal_source": "first_frame_residuals"}, 13),
    "true temporal grid": ({"proxy": ON_GRID, "block": tiny.block(temporal_peg="grid")}, 13),
    "one modifier, no null keys, other depths": (
        {"modifiers_per_query": 1, "num_null_kv": 0, "decoder_spatial": "twt", "decoder_temporal": "ttt"},
        9,
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_equals_plain_loops(case):
    changes, num_frames = CASES[case]
    config = tiny.tokenizer_config(**changes)
    model = tiny.tokenizer(config)
    video = tiny.clip(3, num_frames, config.height, config.width)
    expected = naive.tokenizer(naive.published(model), video[0].double().numpy(), config, tiny.prior())
    spatial, temporal = model.encoder(video)
    assert tiny.relative_error(spatial[0], expected["spatial"]) < 1e-5
    assert tiny.relative_error(temporal[0], expected["temporal"]) < 1e-5
    assert model.layout.to_local(model.encode(video).ids)[0].tolist() == expected["ids"]
    logits = model.predict(video).logits
    assert tiny.relative_error(logits[0].movedim(0, -1), expected["logits"]) < 1e-5
    for path in PATHS:
        assert tiny.relative_error(with_path(model, path).to_pixels(logits)[0], expected[path]) < 1e-5


def with_path(model, path):
    """The same weights with another way from logits to pixels."""
    other = SweetTok(replace(model.config, pixel_path=path), model.prior)
    other.load_state_dict(model.state_dict())
    return other.eval()


def test_kept_numbers():
    kept, now = json.loads(tiny.VALUES.read_text(encoding="utf-8")), tiny.values()
    assert kept.keys() == now.keys()
    for name, expected in kept.items():
        if isinstance(expected[0], int):
            assert now[name] == expected, name
        else:
            error = tiny.relative_error(np.array(now[name]), np.array(expected))
            assert error < 1e-5, f"{name}: relative error {error:.2e}"


@torch.no_grad()
def test_shared_slices_equal_slices_run_one_by_one(model, ids):
    """Where the decoder computes equal slices once, running all of them from the start gives the same."""
    decoder, codes = model.decoder, model.codes(ids)
    for num_slices in (1, 2, 3, 6, 12):
        appearance = decoder.spatial_latent((decoder.spatial_in(codes[0]) + decoder.spatial_positions)[:, None], (2, 2))
        motion = decoder.temporal_latent(decoder.temporal_in(codes[1]) + decoder.temporal_positions)
        x = (decoder.mask_token + decoder.positions).expand(3, num_slices, -1, -1)
        angles = decoder.spatial.angles(decoder.grid, x.device)
        for i, layer in enumerate(decoder.spatial.layers):
            x = decoder.spatial.step(layer, x, decoder.grid, angles, None, appearance[i].squeeze(1))
            if i % 2 == 1:
                x = decoder.motion[i // 2](x, motion[i // 2])
        expected = decoder.head(decoder.spatial.norm_out(x)).unflatten(2, decoder.grid).movedim(-1, 1)
        logits = decoder(*codes, num_slices)
        assert logits.shape == (3, 32, num_slices, 4, 4)
        assert tiny.relative_error(logits, expected) < 1e-6
    assert tiny.relative_error(logits[:, :, 3], logits[:, :, 4]) > 1e-4, "the slices are all alike: nothing was tested"


# ------------------------------------------------------------------------------------------------------- round trip


@torch.no_grad()
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("batch", [1, 3])
def test_decoding_the_ids_is_the_forward_pass(model, video, path, batch):
    tok = with_path(model, path)
    out = tok.encode(video[:batch])
    decoded = tok.decode(out.ids)
    assert torch.equal(decoded, tok(video[:batch]))
    assert decoded.shape == (batch, 3, 9, 16, 16) and decoded.dtype == torch.float32
    assert decoded.abs().max() <= 0.5 and decoded.std() > 0.05


def test_forward_with_gradients_is_the_same(model, video, ids):
    assert torch.equal(model(video).detach(), model.decode(ids))


@torch.no_grad()
@pytest.mark.parametrize("path", PATHS)
def test_a_batch_equals_its_clips(model, video, path):
    tok = with_path(model, path)
    together = tok.encode(video)
    apart = [tok.encode(clip[None]) for clip in video]
    assert torch.equal(together.ids, torch.cat([out.ids for out in apart]))
    decoded = torch.cat([tok.decode(out.ids) for out in apart])
    assert (tok.decode(together.ids) - decoded).abs().max() < 1e-5


def test_ids(model, ids):
    layout = model.layout
    assert ids.dtype == torch.int64 and ids.shape == (3, layout.length) == (3, 60)
    layout.check(ids)
    local = layout.split(layout.to_local(ids))
    assert {name: tuple(part.shape) for name, part in local.items()} == {
        "adjective": (3, 4, 2),
        "noun": (3, 4, 1),
        "adverb": (3, 16, 2),
        "verb": (3, 16, 1),
    }
    for name, part in local.items():
        assert part.unique().numel() > 2, f"all {name}s are alike: nothing is tested here"
    assert (ids[0] != ids[1]).any() and (ids[1] != ids[2]).any()


@torch.no_grad()
@pytest.mark.parametrize("per_query", [1, 2, 3])
def test_ids_give_back_the_quantized_latents(video, per_query):
    model = tiny.tokenizer(tiny.tokenizer_config(modifiers_per_query=per_query))
    spatial, temporal = model.quantize(video)
    codes = model.codes(model.encode(video).ids)
    assert torch.equal(codes[0], spatial.output) and torch.equal(codes[1], temporal.output)


@torch.no_grad()
def test_modifiers_are_read_in_query_order(model):
    """Words that all differ: each query must get its own, and no other order of reading gives the same."""
    layout = model.layout
    local = torch.zeros(2, layout.length, dtype=torch.int64)
    local[:, layout.segment("adjective").places] = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7], [10, 9, 8, 7, 6, 5, 4, 3]])
    spatial, _ = model.codes(layout.to_global(local))
    table = model.spatial_quantizer.tables()[0]
    for clip in range(2):
        for query in range(4):
            first, second = local[clip, 2 * query : 2 * query + 2]
            assert torch.equal(spatial[clip, query, :8], torch.stack((table[first], table[second])).mean(0))


@torch.no_grad()
@pytest.mark.parametrize("name", ["adjective", "noun", "adverb", "verb"])
def test_exchanged_words_change_the_video(model, ids, name):
    words = model.layout.split(model.layout.to_local(ids))[name][0]
    query = next(i for i in range(1, len(words)) if not torch.equal(words[i], words[0]))
    per_query, start = words.shape[1], model.layout.segment(name).start
    order = torch.arange(model.layout.length)
    for i in range(per_query):
        order[start + i], order[start + query * per_query + i] = start + query * per_query + i, start + i
    changed = ids[:1, order]
    model.layout.check(changed)
    assert (model.decode(changed) - model.decode(ids[:1])).abs().max() > 1e-4


def test_words(model, video):
    out = model.encode(video)
    assert out.layout == model.layout
    for clip in (0, 2, -1):
        words = out.words(clip)
        assert {branch: len(queries) for branch, queries in words.items()} == {"spatial": 4, "temporal": 16}
        local = model.layout.split(model.layout.to_local(out.ids[clip][None]))
        for branch, modifier, head, names in (
            ("spatial", "adjective", "noun", ("adj", "noun")),
            ("temporal", "adverb", "verb", ("adv", "verb")),
        ):
            for query, said in enumerate(words[branch]):
                first, second = local[modifier][0, query].tolist()
                expected = f"{names[0]}{first} {names[0]}{second} | {names[1]}{local[head][0, query, 0]}"
                assert said == expected
    assert out.words(0, max_queries=2) == {branch: queries[:2] for branch, queries in out.words(0).items()}


@torch.no_grad()
def test_bytes_and_floats_are_the_same_video(model):
    video = pixels.to_uint8(tiny.clips(4, 5))
    as_float = pixels.to_float(video)
    assert torch.equal(model.encode(video).ids, model.encode(as_float).ids)
    assert torch.equal(model.encode(video).ids, model.encode(as_float.double()).ids)
    assert torch.equal(model(video), model(as_float))


@torch.no_grad()
def test_inputs_are_left_alone(model, video, ids):
    for given in (video.clone(), pixels.to_uint8(video)):
        kept = given.clone()
        model.encode(given)
        model(given)
        assert torch.equal(given, kept)
    kept = ids.clone()
    model.decode(ids)
    model.codes(ids)
    model.encode(video).words()
    assert torch.equal(ids, kept)


@torch.no_grad()
def test_memory_order_does_not_matter(model, video, ids):
    channels_last = video.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
    assert not channels_last.is_contiguous()
    assert torch.equal(model.encode(channels_last).ids, ids)
    assert torch.equal(model.decode(ids.to(torch.int32)), model.decode(ids))


# ------------------------------------------------------------------------------------------------------ other sizes


@torch.no_grad()
def test_one_model_takes_clips_of_many_lengths(model):
    for num_frames in (5, 9, 13, 21):
        video = tiny.clips(0, 1, num_frames=num_frames)
        out = model.encode(video)
        assert out.ids.shape == (2, 60)
        decoded = model.decode(out.ids, num_frames=num_frames)
        assert decoded.shape == video.shape and torch.equal(decoded, model(video))
    assert model.decode(out.ids).shape[2] == 9, "without a number of frames the configured one is meant"


@torch.no_grad()
@pytest.mark.parametrize("case", ["wide frames, short clip", "small patches and tubes", "true temporal grid"])
def test_other_sizes_round_trip(case):
    changes, num_frames = CASES[case]
    config = tiny.tokenizer_config(**changes)
    model = tiny.tokenizer(config)
    video = tiny.clips(0, 1, num_frames=num_frames, height=config.height, width=config.width)
    assert torch.equal(model.decode(model.encode(video).ids, num_frames=num_frames), model(video))


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {"spatial_source": "first_frame"},
        {"temporal_source": "first_frame_residuals"},
        {"block": tiny.block(temporal_peg="grid")},
        {"pixel_path": "argmax"},
    ],
)
def test_each_option_changes_the_result(model, video, changes):
    other = tiny.tokenizer(tiny.tokenizer_config(**changes))
    assert other.state_dict().keys() == model.state_dict().keys()
    assert not torch.allclose(other(video), model(video), atol=1e-3)


@torch.no_grad()
def test_spatial_branch_on_the_first_frame_sees_no_other():
    model = tiny.tokenizer(tiny.tokenizer_config(spatial_source="first_frame"))
    video, other = tiny.clip(0), tiny.clip(0)
    other[:, :, 1:] = tiny.clip(1)[:, :, 1:]
    (spatial, temporal), (other_spatial, other_temporal) = model.encoder(video), model.encoder(other)
    assert torch.equal(spatial, other_spatial) and not torch.allclose(temporal, other_temporal)


# -------------------------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("case", ["release", "wide query grid, long clip", "true temporal grid"])
def test_stage1_loss_reaches_every_parameter(case):
    model = tiny.tokenizer(tiny.tokenizer_config(**CASES[case][0], pixel_path="argmax")).train()
    model.pixel_decoder.requires_grad_(False)
    video = tiny.clips(0, 1, num_frames=CASES[case][1])
    torch.manual_seed(0)
    tiny.stage1_loss(model, video, tiny.proxy().encode(video)).backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not without, f"no gradient for {without}"
    assert all(p.grad is None for p in model.pixel_decoder.parameters())
    parts = {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert parts == {"encoder", "spatial_quantizer", "temporal_quantizer", "decoder"}


@pytest.mark.parametrize("path", PATHS)
def test_pixel_loss_reaches_decoder_and_pixel_decoder(model, video, path):
    """By expected code vector the logits learn from pixels; by likeliest code only the pixel decoder does."""
    tok = with_path(model, path)
    tok.to_pixels(tok.predict(video).logits).square().mean().backward()
    assert all(p.grad is not None for p in tok.pixel_decoder.parameters())
    learns = {n.partition(".")[0] for n, p in tok.named_parameters() if p.grad is not None}
    assert ("decoder" in learns) == ("encoder" in learns) == (path == "expected")
    assert not {"spatial_quantizer", "temporal_quantizer"} & learns, "codes learn from their losses alone"


def test_training_starts_from_lively_weights():
    """Fresh weights: finite logits, gradients everywhere, queries that are not alike."""
    torch.manual_seed(0)
    model = SweetTok(tiny.tokenizer_config(pixel_path="none"), tiny.prior())
    video = tiny.clips(0, 1)
    loss = tiny.stage1_loss(model, video, tiny.proxy().encode(video))
    loss.backward()
    assert torch.isfinite(loss) and abs(loss.item() - np.log(32)) < 1.5
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    spatial, temporal = model.encoder(video)
    assert spatial.std(1).mean() > 0.01 and temporal.std(1).mean() > 0.01


# ------------------------------------------------------------------------------------------------------- precision


@torch.no_grad()
def test_bfloat16_autocast(model, video):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        spatial, temporal = model.encoder(video)
        prediction = model.predict(video)
        decoded = model(video)
        assert prediction.logits.dtype == torch.bfloat16, "autocast did not act"
    assert spatial.dtype == temporal.dtype == decoded.dtype == torch.float32
    assert (spatial.norm(dim=-1) - 1).abs().max() < 1e-6, "unit length is not made in float32"
    for quantizer, z, cast in (
        (model.spatial_quantizer, spatial, prediction.spatial),
        (model.temporal_quantizer, temporal, prediction.temporal),
    ):
        plain = quantizer(z)
        assert cast.output.dtype == torch.float32
        assert all(torch.equal(ids, others) for ids, others in zip(cast.ids, plain.ids, strict=True))
        assert torch.equal(cast.output, plain.output)
    assert prediction.logits.isfinite().all()


@torch.no_grad()
def test_expected_code_vector_is_float32_under_autocast(model):
    logits = 5 * torch.from_numpy(tiny.normal("logits", (1, 32, 3, 4, 4))).float()
    seen = []
    handle = model.pixel_decoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model.to_pixels(logits)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model.to_pixels(logits)
    handle.remove()
    scores = logits[0].movedim(0, -1).double().numpy()
    expected = naive.softmax(scores) @ model.pixel_decoder.codebook.embeddings.double().numpy()
    assert torch.equal(*seen) and tiny.relative_error(seen[0][0], expected) < 1e-6
