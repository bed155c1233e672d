import numpy as np
import pytest
import torch
from training_golden import (
    PERCEPTUAL_FRAMES,
    assert_statistics,
    golden_clips,
    golden_convnext,
    golden_discriminator,
    golden_json,
    wave,
)

from sweettok.losses import terms as losses


def test_proxy_cross_entropy_is_the_mean_over_places():
    logits, codes = torch.randn(2, 5, 3, 2, 2), torch.randint(5, (2, 3, 2, 2))
    log_p = logits.permute(0, 2, 3, 4, 1).log_softmax(-1)
    picked = log_p.gather(-1, codes[..., None])
    torch.testing.assert_close(losses.proxy_cross_entropy(logits, codes), -picked.mean())
    smooth = 0.9 * -picked.mean() + 0.1 * -log_p.mean()
    torch.testing.assert_close(losses.proxy_cross_entropy(logits, codes, label_smoothing=0.1), smooth)


def test_terms_are_float32_under_autocast():
    video = torch.randn(2, 4, 3, 2, 2).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = [
            losses.proxy_cross_entropy(video, torch.zeros(2, 3, 2, 2, dtype=torch.int64)),
            *losses.quantizer_loss(video, video + 1),
            losses.reconstruction_loss(video, video + 1, "l1"),
            losses.reconstruction_loss(video, video + 1, "l2"),
            losses.hinge_discriminator_loss(video, video),
            losses.generator_adversarial_loss(video),
            losses.feature_matching_loss([video, video], [video + 1, video]),
        ]
    assert all(term.dtype == torch.float32 for term in terms)


def test_quantizer_loss_sides_train_their_own_tensor():
    z, q = torch.randn(2, 4, 3, requires_grad=True), torch.randn(2, 4, 3, requires_grad=True)
    loss = losses.quantizer_loss(z, q, encoder_weight=0.7, codebook_weight=0.2)
    error = (z - q).detach()
    torch.testing.assert_close(loss.total, 0.9 * error.square().mean())
    torch.testing.assert_close(loss.encoder_side, error.square().mean())
    torch.testing.assert_close(loss.codebook_side, error.square().mean())
    loss.total.backward()
    torch.testing.assert_close(z.grad, 0.7 * 2 * error / error.numel())
    torch.testing.assert_close(q.grad, 0.2 * -2 * error / error.numel())


def test_reconstruction_loss():
    a, b = torch.randn(2, 3, 2, 4, 4), torch.randn(2, 3, 2, 4, 4)
    torch.testing.assert_close(losses.reconstruction_loss(a, b), ((a - b) ** 2).mean())
    torch.testing.assert_close(losses.reconstruction_loss(a, b, "l1"), (a - b).abs().mean())


def test_frame_indices_are_one_for_each_clip():
    draw = [losses.perceptual_frame_indices(4, 17, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(draw[0], draw[1])
    many = losses.perceptual_frame_indices(1000, 3, torch.Generator().manual_seed(0))
    assert many.shape == (1000,) and many.unique().tolist() == [0, 1, 2]


def test_pick_frames():
    video = torch.randn(3, 3, 5, 2, 2)
    frames = losses.pick_frames(video, torch.tensor([4, 0, 2]))
    assert torch.equal(frames, torch.stack([video[0, :, 4], video[1, :, 0], video[2, :, 2]]))


def test_adversarial_terms():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.25])
    torch.testing.assert_close(losses.hinge_discriminator_loss(real, fake), torch.tensor(0.5 * (0.25 + 0.625)))
    torch.testing.assert_close(losses.generator_adversarial_loss(fake), torch.tensor(1.375))


def test_feature_matching_leaves_out_the_logits_and_the_real_side():
    fake = [torch.randn(2, n, requires_grad=True) for n in (3, 4, 1)]
    real = [torch.randn(2, n, requires_grad=True) for n in (3, 4, 1)]
    loss = losses.feature_matching_loss(fake, real)
    torch.testing.assert_close(loss, (fake[0] - real[0]).abs().mean() + (fake[1] - real[1]).abs().mean())
    loss.backward()
    assert all(f.grad is not None for f in fake[:2])
    assert fake[2].grad is None and all(r.grad is None for r in real)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: losses.proxy_cross_entropy(x, torch.zeros(2, 3, 4, 5).long()), r"\(2, 3, 4, 5, 6\)"),
        (lambda x: losses.proxy_cross_entropy(x, torch.zeros(2, 4, 5, 6)), "int64"),
        (lambda x: losses.quantizer_loss(x, x[:1]), "quantized"),
        (lambda x: losses.reconstruction_loss(x, x[:, :1]), "target"),
        (lambda x: losses.pick_frames(x, torch.zeros(3).long()), r"indices \(B,\)"),
        (lambda x: losses.feature_matching_loss([x, x], [x]), "shorter"),
    ],
)
def test_wrong_shapes_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 3, 4, 5, 6))


def test_golden_cross_entropy(golden_folder):
    expected = golden_json(golden_folder)["ce"]
    for case in expected["cases"]:
        size = case["V"]
        logits = wave(3.0, (1.7, 0.37, 0.9, 0.21, 0.13), 0.0, (2, size, 2, 3, 3)).requires_grad_()
        b, t, h, w = torch.meshgrid(*(torch.arange(n) for n in (2, 2, 3, 3)), indexing="ij")
        codes = (131 * b + 1777 * t + 97 * h + 11 * w + 5) % size
        assert codes.sum().item() == case["targets_sum"]
        loss = losses.proxy_cross_entropy(logits, codes)
        loss.backward()
        assert loss.item() == pytest.approx(case["reconstruction_loss"], abs=2e-6)
        assert logits.grad.abs().max().item() == pytest.approx(case["grad_absmax"], rel=1e-5)
        assert logits.grad.norm().item() == pytest.approx(case["grad_l2"], rel=1e-5)
    flat = losses.proxy_cross_entropy(torch.zeros(1, 8192, 1, 1, 1), torch.zeros(1, 1, 1, 1, dtype=torch.int64))
    assert flat.item() == pytest.approx(expected["uniform_8192"], abs=2e-6)


def test_golden_quantizer_loss(golden_folder):
    expected = golden_json(golden_folder)["vq"]
    arrays = np.load(golden_folder / "training.npz")
    z = wave(0.3, (0.9, 0.5, 0.0, 0.11), 0.0, (2, 8, 1, 256)).requires_grad_()
    modifiers = wave(0.3, (0.8, 1.1), torch.pi / 2, (5, 4)).requires_grad_()
    heads = wave(0.3, (0.6, 0.9), 0.4 + torch.pi / 2, (7, 4)).requires_grad_()
    tokens = z.permute(0, 2, 3, 1).reshape(2, 256, 8)
    nearest = [
        torch.cdist(tokens.detach()[..., part], words.detach()).argsort(-1)
        for part, words in ((slice(0, 4), modifiers), (slice(4, 8), heads))
    ]
    indices = torch.cat([nearest[0][..., :2].flatten(1), nearest[1][..., 0]], dim=1)
    assert np.array_equal(indices.numpy(), arrays["vq_indices"])

    halves = (modifiers[nearest[0][..., :2]].mean(dim=2), heads[nearest[1][..., 0]])
    quantized = torch.cat(halves, dim=-1).transpose(1, 2).unsqueeze(2)
    torch.testing.assert_close(quantized, torch.from_numpy(arrays["vq_zq"]), atol=1e-6, rtol=0)
    assert_statistics(quantized, expected["zq"], atol=1e-6)
    first = losses.quantizer_loss(tokens[..., :4], halves[0])
    second = losses.quantizer_loss(tokens[..., 4:], halves[1])
    total = first.total + second.total
    total.backward()
    assert first.encoder_side.item() == pytest.approx(expected["modifier_mse"], rel=1e-5)
    assert second.encoder_side.item() == pytest.approx(expected["main_mse"], rel=1e-5)
    assert total.item() == pytest.approx(expected["quantizer_loss"], rel=1e-5)
    # The release logs the two sides under each other's name.
    codebook_side = 0.25 * (first.codebook_side + second.codebook_side)
    encoder_side = first.encoder_side + second.encoder_side
    assert codebook_side.item() == pytest.approx(expected["logged_commitment_loss"], rel=1e-5)
    assert encoder_side.item() == pytest.approx(expected["logged_codebook_loss"], rel=1e-5)
    assert z.grad.norm().item() == pytest.approx(expected["dL_dz_l2"], rel=1e-5)
    gradient = torch.cat([modifiers.grad, heads.grad])
    assert gradient.norm().item() == pytest.approx(expected["dL_dcodebook_l2"], rel=1e-5)
    torch.testing.assert_close(gradient, torch.from_numpy(arrays["vq_grad_codebook"]), atol=1e-7, rtol=1e-4)


@pytest.fixture(scope="module")
def networks(golden_folder, golden_rule):
    return golden_convnext(golden_rule), golden_discriminator(golden_rule)


def generator_terms(networks, real, fake, adversarial):
    """The stage-2 terms with the release's multipliers; `adversarial` is 1 from step 20000 on and 0 before."""
    perceptual_net, discriminator = networks
    frames = torch.tensor(PERCEPTUAL_FRAMES)
    terms = {
        "reconstruction_loss": 4 * losses.reconstruction_loss(fake, real, "l2"),
        "perceptual_loss": 0.1
        * perceptual_net(losses.pick_frames(fake, frames), losses.pick_frames(real, frames)).mean(),
    }
    if adversarial:
        discriminator.requires_grad_(False)
        fake_maps = discriminator(fake)
        with torch.no_grad():
            real_maps = discriminator(real)
        terms["weighted_gan_loss"] = 0.01 * losses.generator_adversarial_loss(fake_maps[-1])
        terms["matching"] = 0.01 * 4 * losses.feature_matching_loss(fake_maps, real_maps)
        discriminator.requires_grad_(True)
    return terms


@pytest.mark.parametrize(("step", "gradient_norm"), [(0, 0.0074665), (19999, None), (20000, 0.0076185)])
def test_golden_stage2_generator(golden_folder, networks, step, gradient_norm):
    expected = golden_json(golden_folder)["stage2_loss"][f"generator_step{step}"]
    real, fake = golden_clips()
    fake.requires_grad_()
    terms = generator_terms(networks, real, fake, adversarial=step >= 20000)
    for name in terms.keys() & expected.keys():
        assert terms[name].item() == pytest.approx(expected[name], abs=1e-5), name
    total = sum(terms.values())
    assert total.item() == pytest.approx(expected["total_loss"], abs=1e-5)
    if gradient_norm is not None:
        total.backward()
        assert fake.grad.norm().item() == pytest.approx(gradient_norm, abs=1e-7)
        assert all(param.grad is None for network in networks for param in network.parameters())


def test_golden_stage2_discriminator(golden_folder, networks):
    expected = golden_json(golden_folder)["stage2_loss"]
    real, fake = golden_clips()
    discriminator = networks[1]
    with torch.no_grad():
        real_logits, fake_logits = discriminator(real)[-1], discriminator(fake)[-1]
    at_20000 = expected["discriminator_step20000"]
    loss = 0.01 * losses.hinge_discriminator_loss(real_logits, fake_logits)
    assert loss.item() == pytest.approx(at_20000["discriminator_loss"], abs=1e-6)
    assert real_logits.mean().item() == pytest.approx(at_20000["logits_real"], abs=1e-5)
    assert fake_logits.mean().item() == pytest.approx(at_20000["logits_fake"], abs=1e-5)


def test_golden_pixel_losses(golden_folder):
    expected = golden_json(golden_folder)["stage2_loss"]
    real, fake = golden_clips()
    assert losses.reconstruction_loss(fake, real, "l2").item() == pytest.approx(expected["mse"], abs=1e-6)
    assert losses.reconstruction_loss(fake, real, "l1").item() == pytest.approx(expected["l1"], abs=1e-6)


def test_usage_loss_is_zero_for_a_uniform_choice_and_log_v_for_one_word():
    table = torch.eye(4) * 10
    assert losses.usage_loss(table[None], table).abs() < 1e-5
    one = table[:1].expand(6, 4)[None]
    assert losses.usage_loss(one, table).item() == pytest.approx(np.log(4), abs=1e-4)
    near = (0.01 * torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0))).requires_grad_()
    loss = losses.usage_loss(near, torch.tensor([[0.0, 0, 0, 0], [0.1, 0, 0, 0]]))
    (gradient,) = torch.autograd.grad(loss, near)
    assert loss > 0 and (gradient[..., 0] < 0).all()  # a step against it goes to the word that is chosen less
    far = losses.usage_loss(near, torch.tensor([[0.0, 0, 0, 0], [100.0, 0, 0, 0]]))
    (gradient,) = torch.autograd.grad(far, near)
    assert far.item() == pytest.approx(np.log(2)) and gradient.isfinite().all()  # a word of probability 0
