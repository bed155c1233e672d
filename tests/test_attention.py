"""Every block against plain loops in float64 (tests/naive.py)."""

import copy

import naive
import numpy as np
import pytest
import tiny
import torch
from torch.utils.checkpoint import checkpoint

from sweettok.layers import attention, positions
from sweettok.layers.attention import Attention, SingleTokenAttention, WindowAttention
from sweettok.layers.checkpointing import set_gradient_checkpointing
from sweettok.layers.linear import SMALLEST
from sweettok.layers.positions import PositionConv, grid_rotary_angles, rotate, unit_rotated
from sweettok.layers.transformer import FeedForward, SingleTokenTransformer, SpatialTransformer, TemporalTransformer

TOLERANCE = 1e-5
BLOCK = tiny.block()
RENAMED = (
    ("peg.conv.", "0.dsconv."),
    ("self_attn.", "1."),
    ("cross_attn.", "2."),
    ("ff.norm.", "3.0."),
    ("ff.up.", "3.1."),
    ("ff.down.", "3.4."),
)


def numbers(name, *shape):
    return torch.from_numpy(tiny.normal(name, shape)).float()


def weights(module, *renamed):
    """Rule-filled weights of `module` under the names that tests/naive.py reads."""
    W = {}
    for name, value in tiny.fill(module).state_dict().items():
        for ours, theirs in renamed:
            name = name.replace(ours, theirs)
        W[name] = value.double().numpy()
    return W


def close(ours, expected, tolerance=TOLERANCE):
    error = tiny.relative_error(ours, expected)
    assert error < tolerance, f"relative error {error:.2e}"


@torch.no_grad()
@pytest.mark.parametrize("grid", [None, (3, 3), (2, 5), (5, 2)])
@pytest.mark.parametrize("causal", [False, True])
def test_self_attention(grid, causal):
    module = Attention(**BLOCK.heads, causal=causal)
    W = weights(module)
    count = grid[0] * grid[1] if grid else 7
    x = numbers("x", 2, count, 24)
    angles = grid_rotary_angles(*grid, BLOCK.head_dim, x.device) if grid else None
    rows = [naive.attention(W, "", row, grid=grid, causal=causal) for row in x.double().numpy()]
    close(module(x, angles=angles), np.stack(rows))


@torch.no_grad()
@pytest.mark.parametrize("num_null_kv", [0, 1, 2])
@pytest.mark.parametrize("context_length", [1, 6])
def test_cross_attention(num_null_kv, context_length):
    module = Attention(**BLOCK.heads, cross=True, num_null_kv=num_null_kv)
    W = weights(module)
    assert ("null_kv" in W) == (num_null_kv > 0)
    x, context = numbers("x", 2, 5, 24), numbers("context", 2, context_length, 24)
    rows = [
        naive.attention(W, "", row, context=keys)
        for row, keys in zip(x.double().numpy(), context.double().numpy(), strict=True)
    ]
    close(module(x, context), np.stack(rows))


@torch.no_grad()
def test_causal_attention_does_not_see_the_future():
    module = tiny.fill(Attention(**BLOCK.heads, causal=True))
    x, changed = numbers("x", 1, 6, 24), numbers("x", 1, 6, 24)
    changed[:, 4:] += 1
    before, after = module(x), module(changed)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


@torch.no_grad()
def test_attention_on_one_token_needs_only_the_value_path():
    full = Attention(**BLOCK.heads)
    W = weights(full)
    single = SingleTokenAttention(**BLOCK.heads)
    single.to_v.weight.copy_(full.to_kv.weight.chunk(2)[1])
    single.to_out.weight.copy_(full.to_out.weight)
    x = numbers("x", 6, 24)
    close(single(x), np.concatenate([naive.attention(W, "", row[None]) for row in x.double().numpy()]))


@torch.no_grad()
@pytest.mark.parametrize(("grid", "size"), [((4, 4), 2), ((2, 6), 2), ((6, 3), 3)])
def test_window_attention(grid, size):
    block = tiny.block(window_size=size)
    module = WindowAttention(**block.heads, window_size=size)
    W = weights(module)
    x = numbers("x", 2, grid[0] * grid[1], 24)
    rows = [naive.window_attention(W, "", row, grid, size, block.head_dim) for row in x.double().numpy()]
    close(module(x, grid), np.stack(rows))


@torch.no_grad()
def test_feed_forward():
    module = FeedForward(24, BLOCK.ff_dim)
    assert module.down.weight.shape == (24, 32)  # int(24 * 2.0 * 2 / 3)
    W = weights(module, ("norm.", "0."), ("up.", "1."), ("down.", "4."))
    x = numbers("x", 2, 5, 24)
    close(module(x), naive.feed_forward(W, "", x.double().numpy()))


@torch.no_grad()
def test_position_convolution():
    module = PositionConv(24)
    W = weights(module, ("conv.", "dsconv."))
    x = numbers("x", 2, 4, 3, 5, 24)
    close(module(x), np.stack([naive.peg(W, "", clip) for clip in x.double().numpy()]))
    changed = x.clone()
    changed[:, 2:] += 1
    assert torch.equal(module(changed)[:, :2], module(x)[:, :2]), "a later slice changed an earlier one"
    with torch.enable_grad():
        module(x).sum().backward()
    weight = module.conv.weight  # otherwise DistributedDataParallel warns
    assert weight.grad.stride() == weight.stride() and weight.grad.abs().amin() > 0


@pytest.mark.parametrize("slices", [1, 2, 4])
def test_gradients_of_the_position_convolution_are_autograds(slices):
    x = numbers("x", 2, slices, 3, 5, 8).requires_grad_()
    weight, bias = numbers("weight", 8, 1, 3, 3, 3).requires_grad_(), numbers("bias", 8).requires_grad_()
    functions = positions._depthwise_conv, positions._DepthwiseConv.apply
    upstream = numbers("upstream", *x.shape)
    expected, found = (torch.autograd.grad(f(x, weight, bias), (x, weight, bias), upstream) for f in functions)
    torch.testing.assert_close(found, expected)


def run(layer, x):
    return layer(x) if isinstance(layer, PositionConv) else layer(x.flatten(1, 3))


def gradients(layer, x, function=run):
    return torch.autograd.grad(function(layer, x).float().square().sum(), (x, *layer.parameters()))


LAYERS = [PositionConv(8), Attention(dim=8, num_heads=2, head_dim=4)]


@pytest.mark.parametrize("layer", LAYERS, ids=["convolution", "attention"])
def test_own_backward_passes_under_autocast(layer):
    """The backward pass may run outside of it, and inside."""
    layer, x = tiny.fill(layer), numbers("x", 2, 3, 4, 5, 8).requires_grad_()
    exact = gradients(layer, x)

    def mixed(layer, x):
        with torch.autocast("cpu", torch.bfloat16):
            y = run(layer, x)
        assert y.dtype == torch.bfloat16
        return y

    found = [gradients(layer, x, mixed)]
    with torch.autocast("cpu", torch.bfloat16):
        found.append(gradients(layer, x, mixed))
    for gradient in found:
        for ours, expected in zip(gradient, exact, strict=True):
            assert ours.dtype == torch.float32
            assert 0 < (ours - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("layer", LAYERS, ids=["convolution", "attention"])
def test_own_backward_passes_twice_recomputed_and_in_float64(layer):
    layer, x = tiny.fill(layer), numbers("x", 2, 3, 4, 5, 8).requires_grad_()
    once, inputs = gradients(layer, x), (x, *layer.parameters())
    for y in (checkpoint(run, layer, x, use_reentrant=False), run(layer, x) + 0 * run(layer, x)):
        loss = y.square().sum()
        for _ in range(2):
            torch.testing.assert_close(torch.autograd.grad(loss, inputs, retain_graph=True), once)
    with torch.no_grad():
        torch.testing.assert_close(run(layer, x), y)
    layer = copy.deepcopy(layer).double()
    double = gradients(layer, x.detach().double().requires_grad_())
    assert {part.dtype for part in double} == {torch.float64}
    torch.testing.assert_close([part.float() for part in double], list(once), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rotated", [True, False])
def test_unit_vectors_and_their_gradients_are_autograds(rotated):
    x, scale = numbers("x", 2, 6, 3, 8).requires_grad_(), numbers("scale", 8).requires_grad_()
    angles = grid_rotary_angles(2, 3, 8, x.device) if rotated else None
    turned = x if angles is None else rotate(x, angles.unsqueeze(2))
    plain, ours = torch.nn.functional.normalize(turned, dim=-1) * scale, unit_rotated(x, scale, angles)
    torch.testing.assert_close(ours, plain)
    with torch.no_grad():
        torch.testing.assert_close(unit_rotated(x.clone(), scale, angles), plain)
    upstream = numbers("upstream", 2, 8, 3, 6).transpose(1, 3)  # as attention's may be
    expected, found = (torch.autograd.grad(y, (x, scale), upstream) for y in (plain, ours))
    torch.testing.assert_close(found, expected)


def test_padded_feed_forward_equals_a_plain_one():
    layer, x = FeedForward(8, SMALLEST + 3), numbers("x", 3, 5, 8).requires_grad_()
    value, gate = torch.nn.functional.linear(layer.norm(x), layer.up.weight).chunk(2, dim=-1)
    plain = torch.nn.functional.linear(value * torch.nn.functional.gelu(gate), layer.down.weight)
    inputs = (x, *layer.parameters())
    expected, found = (torch.autograd.grad(y.square().sum(), inputs) for y in (plain, layer(x)))
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), plain)


@torch.no_grad()
@pytest.mark.parametrize(("peg", "cross", "null"), [(True, False, 0), (False, True, 0), (True, True, 2)])
def test_spatial_transformer(peg, cross, null):
    module = SpatialTransformer("twt", **BLOCK.spatial, peg=peg, cross=cross, num_null_kv=null)
    W, grid = weights(module, *RENAMED), (2, 4)
    x, contexts = numbers("x", 2, 3, 8, 24), [numbers(f"context{i}", 2, 5, 24) for i in range(3)]
    ours = module(x, grid, contexts if cross else None)
    for b in range(2):
        own = [context[b].double().numpy() for context in contexts]
        expected = naive.spatial_transformer(W, "", x[b].double().numpy(), grid, BLOCK, own)
        assert len(ours) == len(expected) == 3
        for layer, wanted in zip(ours, expected, strict=True):
            close(layer[b], wanted)


@torch.no_grad()
@pytest.mark.parametrize("peg", ["scrambled", "grid"])
def test_temporal_transformer(peg):
    module = TemporalTransformer("tt", **tiny.block(temporal_peg=peg).temporal)
    W, grid = weights(module, *RENAMED), (2, 3)
    x = numbers("x", 2, 6, 4, 24)
    ours = module(x, grid)
    for b in range(2):
        expected = naive.temporal_transformer(W, "", x[b].double().numpy(), grid, scrambled=peg == "scrambled")
        for layer, wanted in zip(ours, expected, strict=True):
            close(layer[b], wanted)
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)  # same values, other memory order
    assert not strided.is_contiguous() and torch.equal(module(strided, grid)[-1], ours[-1])


@torch.no_grad()
def test_place_transformer():
    module = SingleTokenTransformer("tt", **BLOCK.layer, cross=True)
    W = weights(module, *RENAMED)
    for i in range(2):  # the published form: queries and keys that have no effect
        p = f"layers.{i}.1."
        to_v = W.pop(p + "to_v.weight")
        W[p + "to_kv.weight"] = np.concatenate((tiny.normal("keys", to_v.shape), to_v))
        W[p + "to_q.weight"] = tiny.normal("queries", to_v.shape)
        W |= {p + f"norm.{part}": tiny.normal(part, (24,)) for part in ("gamma", "beta")}
        W |= {p + f"{part}_scale": tiny.normal(part, (8,)) for part in "qk"}
    x, contexts = numbers("x", 2, 5, 24), [numbers(f"context{i}", 2, 5, 3, 24) for i in range(2)]
    ours = module(x, contexts)
    for b in range(2):
        expected = naive.place_transformer(W, "", x[b].double().numpy(), [c[b].double().numpy() for c in contexts])
        for layer, wanted in zip(ours, expected, strict=True):
            close(layer[b], wanted)


@pytest.mark.parametrize("module", ["full", "causal", "windows"])
def test_more_rows_than_a_launch_takes(monkeypatch, module):
    """On CUDA, more than 65,535 rows times heads are an invalid launch; here the limit is 6, of 2 heads."""
    module, inputs = {
        "full": (Attention(**BLOCK.heads, cross=True, num_null_kv=1), (numbers("c", 7, 5, 24),)),
        "causal": (Attention(**BLOCK.heads, causal=True), ()),
        "windows": (WindowAttention(**BLOCK.heads, window_size=2), ((2, 4),)),
    }[module]
    tiny.fill(module)
    x = numbers("x", 7, 8, 24).requires_grad_()
    expected = module(x, *inputs)
    (gradient,) = torch.autograd.grad(expected.square().sum(), x)
    calls, attend = [], attention.F.scaled_dot_product_attention

    def counted(q, k, v, **options):
        calls.append(q.shape)
        return attend(q, k, v, **options)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", counted)
    monkeypatch.setattr(attention, "MAX_ROWS", 6)
    parts = module(x, *inputs)
    assert len(calls) > 2 and all(rows * heads <= 6 for rows, heads, *_ in calls)
    torch.testing.assert_close(parts, expected)
    torch.testing.assert_close(torch.autograd.grad(parts.square().sum(), x)[0], gradient)


def test_gradient_checkpointing_recomputes_and_keeps_the_gradients():
    video, codes = tiny.clips(0, 1), torch.randint(32, (2, 3, 4, 4))
    gradients, calls, outputs = {}, {}, {}
    for enabled in (False, True):
        model = tiny.tokenizer(tiny.tokenizer_config(graph_dropout=0.0)).train()
        set_gradient_checkpointing(model, enabled)
        ran = []
        blocks = [m for part in (model.encoder, model.decoder) for m in part.modules() if isinstance(m, FeedForward)]
        for module in blocks:
            module.register_forward_pre_hook(lambda *args, ran=ran: ran.append(1))
        loss = tiny.stage1_loss(model, video, codes)
        forward_calls = len(ran)
        loss.backward()
        calls[enabled] = (forward_calls, len(ran))
        assert forward_calls == len(blocks)
        outputs[enabled] = loss.detach()
        gradients[enabled] = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    once = calls[False][0]
    assert calls == {False: (once, once), True: (once, 2 * once)}
    assert torch.equal(outputs[True], outputs[False])
    assert gradients[True].keys() == gradients[False].keys()
    for name, gradient in gradients[False].items():
        assert torch.equal(gradients[True][name], gradient), name
