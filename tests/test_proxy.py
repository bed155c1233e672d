"""The proxy tokenizer at tiny size, and the training of its code table on one and on two processes."""

import naive
import numpy as np
import pytest
import tiny
import torch
import torch.distributed as dist
from torch import multiprocessing

from sweettok import pixels
from sweettok.layers.checkpointing import set_gradient_checkpointing
from sweettok.layers.transformer import FeedForward
from sweettok.proxy.codes import CodeTable, draw_rows

CASES = {
    "release": (tiny.proxy_config(), 9),
    "wide frames, short clip": (tiny.proxy_config(height=8, width=24), 5),
    "true temporal grid": (tiny.proxy_config(block=tiny.block(20, temporal_peg="grid")), 13),
    "small patches": (tiny.proxy_config(height=8, width=8, patch_size=2, temporal_patch_size=2), 7),
    "windows in both": (tiny.proxy_config(encoder_spatial="wt", decoder_spatial="twt"), 9),
    "an image": (tiny.proxy_config(), 1),
    "a wide image": (tiny.proxy_config(height=8, width=24), 1),
}


@pytest.fixture(scope="module")
def proxy():
    return tiny.proxy()


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_equals_plain_loops(case):
    config, num_frames = CASES[case]
    model = tiny.proxy(config)
    video = tiny.clip(3, num_frames, config.height, config.width)
    features, codes, decoded = naive.proxy(naive.published(model), video[0].double().numpy(), config)
    assert tiny.relative_error(model.features(video)[0], features) < 1e-5
    assert np.array_equal(model.encode(video)[0].numpy(), codes)
    assert tiny.relative_error(model.decode(torch.from_numpy(codes)[None])[0], decoded) < 1e-5


@torch.no_grad()
def test_clips_and_images(proxy):
    video = tiny.clips(0, 1)
    codes = proxy.encode(video)
    assert codes.shape == (2, 3, 4, 4) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < 32 and codes.unique().numel() > 8
    assert proxy.decode(codes).shape == (2, 3, 9, 16, 16) and proxy.decode(codes).dtype == torch.float32

    images = video[:, :, 0]
    codes = proxy.encode(images)
    assert codes.shape == (2, 1, 4, 4)
    assert torch.equal(codes, proxy.encode(video[:, :, :1]))
    assert proxy.decode(codes).shape == (2, 3, 1, 16, 16)


@torch.no_grad()
def test_one_proxy_takes_clips_of_many_sizes(proxy):
    for size in ((5, 16, 16), (13, 16, 24), (1, 8, 8)):
        video = tiny.clips(0, 1, num_frames=size[0], height=size[1], width=size[2])
        codes = proxy.encode(video)
        assert codes.shape == (2, *proxy.config.grid(*size))
        assert proxy.decode(codes).shape == video.shape


@torch.no_grad()
def test_a_batch_equals_its_clips(proxy):
    video = tiny.clips(0, 1, 2)
    codes = proxy.encode(video)
    assert torch.equal(codes, torch.cat([proxy.encode(clip[None]) for clip in video]))
    apart = torch.cat([proxy.decode(clip[None]) for clip in codes])
    assert (proxy.decode(codes) - apart).abs().max() < 1e-5


@torch.no_grad()
def test_bytes_and_floats_are_the_same_video(proxy):
    video = pixels.to_uint8(tiny.clips(4, 5))
    kept = video.clone()
    assert torch.equal(proxy.encode(video), proxy.encode(pixels.to_float(video)))
    assert torch.equal(proxy.encode(video[:, :, 0]), proxy.encode(pixels.to_float(video[:, :, 0])))
    assert torch.equal(video, kept)


@torch.no_grad()
def test_lookup_is_float32_under_autocast(proxy):
    features = torch.nn.functional.normalize(torch.from_numpy(tiny.normal("f", (2000, 4))).float(), dim=-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(proxy.codebook.nearest(features), naive_nearest(features, proxy.codebook.embeddings))
        z = proxy.features(tiny.clip())
        assert z.dtype == torch.float32 and (z.norm(dim=-1) - 1).abs().max() < 1e-6


def naive_nearest(features, table):
    distances = ((features.double()[:, None] - table.double()) ** 2).sum(-1)
    return distances.argmin(-1)


# ----------------------------------------------------------------------------------------------------------- errors

WRONG_VIDEOS = {
    "no batch": (torch.zeros(3, 9, 16, 16), r"must have shape \(batch, 3, frames, height, width\)"),
    "a list": ([0.0], "must be a torch tensor, got list"),
    "values": (torch.ones(1, 3, 9, 16, 16), r"must lie in \[-0.5, 0.5\]"),
    "frames": (torch.zeros(1, 3, 8, 16, 16), r"8 frames do not fit: .*\(5 or 9\)"),
    "height": (torch.zeros(1, 3, 9, 20, 16), r"height 20 does not fit: a multiple of 8 is needed \(16 or 24\)"),
    "width": (torch.zeros(1, 3, 9, 16, 4), r"width 4 does not fit: a multiple of 8 is needed \(8 or 16\)"),
    "image width": (torch.zeros(1, 3, 16, 18), r"width 18 does not fit: a multiple of 8 is needed \(16 or 24\)"),
}


@pytest.mark.parametrize("case", WRONG_VIDEOS)
def test_wrong_videos_are_refused(proxy, case):
    video, message = WRONG_VIDEOS[case]
    with pytest.raises(ValueError, match=message):
        proxy.encode(video)
    if case not in ("values", "image width"):  # the training pass takes clips only and does not look at their values
        with pytest.raises(ValueError, match=message):
            proxy(video)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(1, 3, 4, 4), "must be integers of shape .* got torch.float32"),
        (torch.zeros(1, 3, 4, 4, dtype=torch.bool), "must be integers of shape .* got torch.bool"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), r"shape \(B, t, h, w\), got torch.int64 \(3, 4, 4\)"),
        (torch.zeros(0, 3, 4, 4, dtype=torch.int64), r"got torch.int64 \(0, 3, 4, 4\)"),
        (torch.full((1, 3, 4, 4), 32), r"codes must lie in 0..31, got 32..32"),
        (torch.full((1, 3, 4, 4), -1), r"codes must lie in 0..31, got -1..-1"),
        (torch.zeros(1, 3, 5, 4, dtype=torch.int64), "height 20 does not fit"),
        (np.zeros((1, 3, 4, 4), dtype=np.int64), "codes must be a torch tensor, got ndarray"),
    ],
)
def test_wrong_codes_are_refused(proxy, codes, message):
    with pytest.raises(ValueError, match=message):
        proxy.decode(codes)


# --------------------------------------------------------------------------------------------------------- training


def test_training_pass():
    model = tiny.proxy().train()
    video = tiny.clips(0, 1)
    out = model(video)
    assert torch.equal(out.codes, model.encode(video)) and torch.equal(out.features, model.features(video).detach())
    assert not out.features.requires_grad
    torch.testing.assert_close(out.video, model.decode(out.codes), rtol=0, atol=0)
    expected = (out.features - model.codebook(out.codes)).square().mean()
    assert out.commitment.item() == pytest.approx(expected.item(), rel=1e-6)

    (out.video.square().mean() + out.commitment).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without, f"no gradient for {without}"
    assert "decoder.codebook.embeddings" not in dict(model.named_parameters())


def test_straight_through_hands_the_gradient_to_the_features_unchanged():
    model = tiny.proxy().train()
    seen = {}
    model.decoder.register_forward_pre_hook(lambda module, inputs: seen.update(vectors=inputs[0]))
    model.to_code.register_forward_hook(lambda module, inputs, output: seen.update(raw=output))
    out = model(tiny.clip())
    grads = torch.autograd.grad(out.video.square().sum(), (seen["vectors"], seen["raw"]))
    features = torch.nn.functional.normalize(seen["raw"], dim=-1)
    through = torch.autograd.grad(features, seen["raw"], grads[0])[0]
    torch.testing.assert_close(grads[1], through)


def test_gradient_checkpointing():
    video, results = tiny.clips(0, 1), []
    for enabled in (False, True):
        model, ran = tiny.proxy().train(), []
        set_gradient_checkpointing(model, enabled)
        for module in model.modules():
            if isinstance(module, FeedForward):
                module.register_forward_pre_hook(lambda *args, ran=ran: ran.append(1))
        out = model(video)
        (out.video.square().mean() + out.commitment).backward()
        results.append((len(ran), [p.grad for p in model.parameters()]))
    assert results[1][0] == 2 * results[0][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def table(num_codes=6, code_dim=4):
    return tiny.fill(CodeTable(num_codes, code_dim))


def rows(name, count, dim=4):
    return torch.from_numpy(tiny.normal(name, (count, dim))).float()


def reference_update(embeddings, counts, sums, features, codes, decay):
    """One step of the moving averages, with Laplace smoothing of the counts, in float64."""
    for k in range(len(counts)):
        mine = features[codes == k]
        counts[k] = decay * counts[k] + (1 - decay) * len(mine)
        sums[k] = decay * sums[k] + (1 - decay) * mine.sum(0)
    smoothed = (counts + 1e-5) / (counts.sum() + len(counts) * 1e-5) * counts.sum()
    return sums / smoothed[:, None], counts, sums


def test_code_table_follows_the_moving_averages():
    codes_of = table()
    with torch.no_grad():
        codes_of.counts.fill_(2)
        codes_of.sums.copy_(2 * codes_of.embeddings)
    state = [getattr(codes_of, name).double().numpy().copy() for name in ("embeddings", "counts", "sums")]
    for step in range(4):
        groups = [rows(f"clips{step}", 30), rows(f"images{step}", 12)]
        codes = codes_of.nearest(torch.cat(groups))
        kept = [group.clone() for group in groups]
        moved = codes_of.update(groups, codes, 0.9, 0.0, torch.Generator())
        state = list(reference_update(*state, torch.cat(groups).double().numpy(), codes.numpy(), 0.9))
        assert moved == 0
        for name, expected in zip(("embeddings", "counts", "sums"), state, strict=True):
            assert tiny.relative_error(getattr(codes_of, name), expected) < 1e-6, name
        assert all(torch.equal(a, b) for a, b in zip(groups, kept, strict=True))


def test_dead_codes_move_onto_features_of_the_step():
    codes_of = table(num_codes=6)
    features = rows("f", 20)
    codes = torch.tensor([0, 1, 2] * 6 + [0, 1])
    with torch.no_grad():
        codes_of.counts.copy_(torch.tensor([5.0, 5, 5, 5, 0.1, 0]))
        codes_of.sums.copy_(codes_of.embeddings * codes_of.counts[:, None])
    moved = codes_of.update([features], codes, 0.5, 0.2, torch.Generator().manual_seed(0))
    # Counts are now [6, 6, 5.5, 2.5, 0.05, 0], their mean 3.34, a fifth of it 0.67.
    assert moved == 2
    distance = torch.cdist(codes_of.embeddings, features).min(1).values
    assert (distance[4:] == 0).all() and (distance[:4] > 1e-3).all()
    assert not torch.equal(codes_of.embeddings[4], codes_of.embeddings[5])
    mean = torch.tensor([6, 6, 5.5, 2.5, 0.05, 0]).mean()
    torch.testing.assert_close(codes_of.counts, torch.tensor([6, 6, 5.5, 2.5, mean, mean]))
    # A step without features for them leaves them where they are.
    fresh = codes_of.embeddings[4:].clone()
    assert codes_of.update([features], codes, 0.5, 0.2, torch.Generator().manual_seed(1)) == 0
    torch.testing.assert_close(codes_of.embeddings[4:], fresh, rtol=1e-4, atol=1e-4)


def test_code_table_starts_as_unit_vectors_chosen_once():
    codes_of = CodeTable(50, 4)
    torch.testing.assert_close(codes_of.embeddings.norm(dim=-1), torch.ones(50))
    assert torch.equal(codes_of.sums, codes_of.embeddings) and (codes_of.counts == 1).all()
    assert codes_of.perplexity() == pytest.approx(50)
    codes_of.counts[25:] = 0
    assert codes_of.perplexity() == pytest.approx(25)


def test_more_codes_than_features():
    drawn = draw_rows(rows("f", 3), 8, torch.Generator().manual_seed(0))
    distance, nearest = torch.cdist(drawn, rows("f", 3)).min(1)
    assert drawn.shape == (8, 4) and distance.max() < 0.02
    assert nearest.bincount().tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])
    assert len({tuple(row.tolist()) for row in drawn}) == 8, "two codes are the same"


def train_table(rank=0, world=1):
    """Four steps on this process's share of the features."""
    codes_of, moved = table(num_codes=16), 0
    share = slice(rank * 20 // world, (rank + 1) * 20 // world)
    for step in range(4):
        groups = [rows(f"clips{step}", 20)[share], rows(f"images{step}", 20)[share] / 2]
        generator = torch.Generator().manual_seed(step)
        codes = codes_of.nearest(torch.cat(groups))
        moved += codes_of.update(groups, codes, 0.5, 0.5, generator)
    assert moved > 0, "no code died: this part is not tested"
    return {name: value.clone() for name, value in codes_of.state_dict().items()}


def one_of_two(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(train_table(rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_train_the_table_of_one(tmp_path):
    multiprocessing.spawn(one_of_two, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = train_table()
    assert first.keys() == second.keys() == alone.keys()
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), f"{name} differs between the processes"
        torch.testing.assert_close(first[name], value, rtol=1e-5, atol=1e-6, msg=name)
