import json

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from training_golden import (
    DISCRIMINATOR_NAMES,
    assert_statistics,
    golden_clips,
    golden_discriminator,
    golden_json,
)

from sweettok.losses.config import DiscriminatorConfig
from sweettok.losses.discriminator import PatchDiscriminator, SyncedBatchNorm3d
from sweettok.losses.terms import feature_matching_loss, generator_adversarial_loss, hinge_discriminator_loss

TINY = DiscriminatorConfig(base_channels=4, num_layers=2)
SPLITS = (2, 1)  # clips of the two processes: unequal on purpose


def test_layers_halve_then_keep_the_size():
    maps = PatchDiscriminator(DiscriminatorConfig(base_channels=2))(torch.zeros(2, 3, 17, 64, 64))
    assert [tuple(m.shape) for m in maps] == [
        (2, 2, 9, 33, 33),
        (2, 4, 5, 17, 17),
        (2, 8, 3, 9, 9),
        (2, 16, 4, 10, 10),
        (2, 1, 5, 11, 11),
    ]


def test_layer_is_convolution_norm_and_leaky_relu():
    model = PatchDiscriminator(TINY).eval()
    video = torch.randn(1, 3, 5, 16, 16)
    first = torch.nn.functional.leaky_relu(model.layers[0].conv(video), 0.2)
    norm = model.layers[1].norm
    with torch.no_grad():
        norm.running_mean.normal_()
    x = (model.layers[1].conv(first) - norm.running_mean.view(1, -1, 1, 1, 1)) / (1 + 1e-5) ** 0.5
    second = torch.where(x > 0, x, 0.2 * x)
    maps = model(video)
    torch.testing.assert_close(maps[0], first)
    torch.testing.assert_close(maps[1], second)


def test_logits_are_normalized_over_the_batch():
    """Real and fake passes are normalised one by one, so a change of level alone leaves the logits as they are."""
    model = PatchDiscriminator(TINY)
    video = torch.randn(2, 3, 5, 32, 32)
    before_activation = {}
    model.layers[-1].norm.register_forward_hook(lambda m, i, o: before_activation.update(out=o.clone()))
    model(video)
    torch.testing.assert_close(before_activation["out"].mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(before_activation["out"].std(correction=0), torch.tensor(1.0), atol=1e-2, rtol=0)


def test_stays_in_float32_under_autocast():
    model = PatchDiscriminator(TINY).eval()
    video = torch.randn(1, 3, 5, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = model(video.bfloat16())
    assert all(m.dtype == torch.float32 for m in maps)
    torch.testing.assert_close(maps[-1], model(video.bfloat16().float())[-1], atol=0, rtol=0)


@pytest.mark.parametrize("shape", [(3, 5, 16, 16), (1, 1, 5, 16, 16)])
def test_wrong_clips_are_named(shape):
    with pytest.raises(ValueError, match=r"\(B, 3, T, H, W\)"):
        PatchDiscriminator(TINY)(torch.zeros(shape))


def test_without_layers_is_refused():
    with pytest.raises(ValueError, match="num_layers"):
        PatchDiscriminator(DiscriminatorConfig(num_layers=0))


def norm_and_clips():
    generator = torch.Generator().manual_seed(0)
    norm = SyncedBatchNorm3d(3).double()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 1.0, -2.0]))
        norm.bias.copy_(torch.tensor([0.1, 0.0, 3.0]))
    x = 3 * torch.randn(3, 3, 2, 4, 5, generator=generator, dtype=torch.float64) + 50
    weights = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    return norm, x, weights


def run_norm(norm, x, weights):
    """Outputs and gradients of a sum over clips, so that sums over processes equal the joined batch."""
    x = x.clone().requires_grad_()
    y = norm(x)
    (weights * y.square()).sum().backward()
    return {"y": y.detach(), "dx": x.grad, "dw": norm.weight.grad, "db": norm.bias.grad, **dict(norm.named_buffers())}


def discriminator_and_clips():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return PatchDiscriminator(TINY), torch.randn(3, 3, 5, 32, 32)


def run_discriminator(model, video):
    maps = model(video)
    sum(m.square().sum() for m in maps).backward()
    grads = {f"grad {name}": param.grad for name, param in model.named_parameters()}
    return {"maps": [m.detach() for m in maps], "grads": grads, "buffers": dict(model.named_buffers())}


def worker(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    clips = slice(0, SPLITS[0]) if rank == 0 else slice(SPLITS[0], None)
    norm, x, weights = norm_and_clips()
    model, video = discriminator_and_clips()
    result = {"norm": run_norm(norm, x[clips], weights[clips]), "model": run_discriminator(model, video[clips])}
    torch.save(result, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_the_joined_batch(tmp_path):
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))

    joined = run_norm(*norm_and_clips())
    a, b = first["norm"], second["norm"]
    close = dict(atol=1e-9, rtol=1e-9)
    for name in ("y", "dx"):
        torch.testing.assert_close(torch.cat([a[name], b[name]]), joined[name], **close)
    for name in ("dw", "db"):
        torch.testing.assert_close(a[name] + b[name], joined[name], **close)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(a[name], joined[name], **close)
        torch.testing.assert_close(b[name], joined[name], **close)

    joined = run_discriminator(*discriminator_and_clips())
    a, b = first["model"], second["model"]
    for one, other, both in zip(a["maps"], b["maps"], joined["maps"], strict=True):
        torch.testing.assert_close(torch.cat([one, other]), both, atol=1e-4, rtol=1e-4)
    for name, value in joined["grads"].items():
        total, scale = a["grads"][name] + b["grads"][name], value.abs().max()
        if name.endswith("conv.bias") and not name.startswith("grad layers.0"):
            continue  # batch normalisation cancels it: the true gradient is 0
        torch.testing.assert_close(total, value, atol=float(1e-3 * scale), rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    for name, value in joined["buffers"].items():
        torch.testing.assert_close(a["buffers"][name], value, atol=1e-5, rtol=1e-5)


def test_golden_names_and_shapes(golden_folder):
    path = golden_folder / "discriminator_shapes.json"
    expected = {name: tuple(shape) for name, shape in json.loads(path.read_text()).items()}
    model = PatchDiscriminator(DiscriminatorConfig())
    found = {}
    for name, value in model.state_dict().items():
        layer, _, entry = name.rpartition(".")
        found[f"{DISCRIMINATOR_NAMES[layer]}.{entry}"] = tuple(value.shape)
    assert found == expected
    assert sum(p.numel() for p in model.parameters()) == golden_json(golden_folder)["disc"]["n_params"]


def assert_losses(real, fake, expected):
    close = dict(atol=1e-5, rtol=0)
    found = {
        "hinge_d": hinge_discriminator_loss(real[-1], fake[-1]).item(),
        "g_loss": generator_adversarial_loss(fake[-1]).item(),
        "feature_l1_sum": feature_matching_loss(fake, real).item(),
    }
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], **close)
    each = [feature_matching_loss([f, f], [r, r]).item() for f, r in zip(fake[:-1], real[:-1], strict=True)]
    torch.testing.assert_close(each, expected["feature_l1_each"], **close)


@torch.no_grad()
def test_golden_eval(golden_folder, golden_rule):
    expected = golden_json(golden_folder)["disc"]["eval_B1"]
    arrays = np.load(golden_folder / "training.npz")
    model = golden_discriminator(golden_rule).double().eval()  # rounding of float32 depends on the processor
    real, fake = ([x.float() for x in model(video[:1].double())] for video in golden_clips())
    assert [list(m.shape) for m in real] == expected["shapes"]
    for name, maps in (("real", real), ("fake", fake)):
        for value, statistics in zip(maps, expected[f"{name}_features"], strict=True):
            assert_statistics(value, statistics)
        logits = torch.from_numpy(arrays[f"disc_eval_logits_{name}"])
        torch.testing.assert_close(maps[-1], logits, atol=1e-5, rtol=0)
        assert_statistics(maps[-1], expected[f"logits_{name}"])
    for i, value in enumerate(real):
        sampled = torch.from_numpy(arrays[f"disc_eval_feat{i}_real_every997"])
        torch.testing.assert_close(value.flatten()[::997], sampled, atol=1e-5, rtol=0)
    assert_losses(real, fake, expected["losses"])


@torch.no_grad()
def test_golden_train(golden_folder, golden_rule):
    expected = golden_json(golden_folder)["disc"]["train_B2"]
    arrays = np.load(golden_folder / "training.npz")
    model = golden_discriminator(golden_rule).double()  # rounding of float32 depends on the processor
    real, fake = golden_clips()
    fake = [x.float() for x in model(fake.double())]
    real = [x.float() for x in model(real.double())]
    for name, maps in (("real", real), ("fake", fake)):
        logits = torch.from_numpy(arrays[f"disc_train_logits_{name}"])
        torch.testing.assert_close(maps[-1], logits, atol=1e-5, rtol=0)
        assert_statistics(maps[-1], expected[f"logits_{name}"])
    assert_losses(real, fake, expected["losses"])
    ours = {released: name for name, released in DISCRIMINATOR_NAMES.items()}
    for name, statistics in expected["running_after"].items():
        layer, _, entry = name.rpartition(".")
        assert_statistics(model.state_dict()[f"{ours[layer]}.{entry}"], statistics)
