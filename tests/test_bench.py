"""Parts of scripts/bench/codecs.py, mini.py, ops.py, vtok.py and vtok_schemes.py."""

import math
from pathlib import Path

import pytest
import test_vtok
import torch
from conftest import import_file

from sweettok.data.synthetic import synthetic_clip
from sweettok.eval.metrics import psnr
from sweettok.eval.reconstruction import block_means
from sweettok.layers.transformer import FeedForward

BENCH = Path(__file__).resolve().parents[1] / "scripts" / "bench"


@pytest.fixture(scope="module")
def codecs():
    pytest.importorskip("matplotlib", reason='not installed: pip install -e ".[plot]"')
    return import_file(BENCH / "codecs.py", "bench_codecs")


def test_payload_leaves_out_parameter_sets(codecs):
    start, parameters, slices = b"\x00\x00\x00\x01", bytes([32 << 1, 1, 7, 7]), bytes([19 << 1, 1, 5, 5, 5])
    assert codecs.hevc_bytes(start + parameters + start + slices + start[1:] + slices[:3]) == 5 + 3
    header, frame = bytes([1 << 3 | 2, 2, 9, 9]), bytes([6 << 3 | 2, 130, 1]) + b"\x07" * 130
    delimiter, extended = bytes([2 << 3 | 2, 0]), bytes([6 << 3 | 6, 0, 1, 3])
    assert codecs.av1_bytes(delimiter + header + frame + extended) == len(frame) + len(extended)


@pytest.mark.parametrize("name", ["x265", "svtav1"])
def test_lower_quality_takes_fewer_bits(codecs, name):
    import av

    codec = codecs.CODECS[name]
    if codec.encoder not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec.encoder}")
    video = synthetic_clip(0, 5, 64).video
    found = [codecs.code(video, codec, quality) for quality in (codec.qualities[0], codec.qualities[-1])]
    scores = [psnr(video[None], shown[None]).item() for _, shown in found]
    assert found[0][0] > 2 * found[1][0] > 0 and scores[0] > scores[1] + 3 and scores[0] > 25


def test_interpolation_at_the_tokenizers_bits(codecs):
    points = [{"bits": bits, "psnr": bits / 100, "motion": 1.0, "distance": 0.0} for bits in (1600.0, 100.0, 400.0)]
    assert codecs.at_bits(points, 400) == {"psnr": 4.0, "motion": 1.0, "distance": 0.0, "bits": 400, "over": False}
    assert codecs.at_bits(points, 200)["psnr"] == pytest.approx(2.5)  # half way in the logarithm
    assert codecs.at_bits(points, 50) == {"psnr": 1.0, "motion": 1.0, "distance": 0.0, "bits": 100.0, "over": True}
    assert codecs.at_bits(points, 9999)["psnr"] == 16.0


def test_block_means():
    video = torch.rand(2, 3, 5, 8, 8)
    found = block_means(video, 4, 2)
    assert found.shape == video.shape
    torch.testing.assert_close(found[:, :, 0, 5, 2], video[:, :, 0, 4:, :4].mean((-2, -1)))
    torch.testing.assert_close(found[:, :, 4, 0, 7], video[:, :, 3:5, :4, 4:].mean((-3, -2, -1)))
    torch.testing.assert_close(block_means(found, 4, 2), found)


def test_nearest_training_clip():
    mini = import_file(BENCH / "mini.py", "bench_mini")
    training = mini.Clips([torch.full((3, 2, 4, 4), level) for level in (10.0, 50.0)], [torch.zeros(2).numpy()] * 2)
    clips = mini.Clips([torch.full((3, 2, 4, 4), level) for level in (12.0, 90.0, 45.0)], [torch.ones(2).numpy()] * 3)
    found = mini.nearest(clips, training)
    assert found["pixels"] == {"median": pytest.approx(5, rel=1e-3), "least": pytest.approx(2, rel=1e-3)}
    assert found["features"]["median"] == pytest.approx(2**0.5)


@pytest.fixture(scope="module")
def vtok():
    return import_file(BENCH / "vtok.py", "bench_vtok")


def test_computed_flops_are_those_that_pytorch_counts(vtok):
    """Of an image encoder and a language model with sizes in the same ratios as those of the table."""
    hf = pytest.importorskip("transformers", reason='not installed: pip install -e ".[vtok]"')
    from open_clip import CLIP
    from torch.utils.flop_counter import FlopCounterMode

    from sweettok.vtok.encoder import TEXT

    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    with torch.device("meta"):
        text = hf.LlamaModel(hf.LlamaConfig(vocab_size=10, intermediate_size=112, **sizes))
        vision = {"image_size": 28, "patch_size": 7, "width": 16, "layers": 4, "head_width": 8}
        visual = CLIP(embed_dim=12, vision_cfg=vision, text_cfg=TEXT, quick_gelu=True).visual
        mask, inputs = torch.ones(1, 1, 9, 9, dtype=torch.bool), torch.empty(1, 9, 32)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        text(inputs_embeds=inputs, attention_mask=mask, use_cache=False)
    model = vtok.Language(width=32, layers=3, key_width=16, hidden=112, vocab_size=10)
    assert model.flops(9, causal=False) == counted.get_total_flops() + 2 * 32 * 10
    linear = model.flops(9, causal=False) - 4 * 81 * 32 * 3
    assert model.flops(9) == linear + 2 * 81 * 32 * 3
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        visual.forward_intermediates(
            torch.empty(2, 3, 28, 28, device="meta"), indices=[-2], stop_early=True, intermediates_only=True
        )
    assert 2 * vtok.Encoder(width=16, blocks=3, grid=4, numbers=147).flops() == counted.get_total_flops()


def test_tokens_of_five_seconds(vtok):
    assert vtok.num_tokens(31) == {"VTok": 46, "naive": 496, "all patches": 17856} and vtok.frames_of(5) == 121
    llava = vtok.LANGUAGE["LLaVA-Next 8B"]
    assert llava.weights() + 2 * 4096 * 128320 + (2 * 32 + 1) * 4096 == 8_030_785_536  # all of its parameters
    assert llava.cache_bytes(1) == 131_072


@pytest.fixture(scope="module")
def schemes():
    return import_file(BENCH / "vtok_schemes.py", "bench_vtok_schemes")


def test_schemes_have_as_many_tokens_as_their_names_say(schemes):
    for name, settings in schemes.SCHEMES.items():
        if name != schemes.BLIND:
            text = name.split()[1].rstrip(",")
            tokens = sum(map(int, text.split("+"))) if "+" in text else math.prod(map(int, text.split("x")))
            assert test_vtok.make(**settings).num_tokens(frames=25) == tokens, name


def test_differences_of_schemes_are_paired_by_clip_and_seed(schemes):
    """Questions weigh equally, however many there are about a clip."""

    def cells(*seeds):
        keys = ["a 0 what?", "b 0 what?", "b 1 where?", "b 2 who?"]
        clips = [[{"key": key, "right": right} for key, right in zip(keys, seed, strict=True)] for seed in seeds]
        return {number: {"results": {"clips": found}} for number, found in enumerate(clips)}

    worse, better = cells((1, 0, 0, 0), (1, 0, 0, 1)), cells((1, 1, 0, 1), (1, 1, 1, 1))
    mean, low, high = schemes.paired(better, worse)
    assert mean == pytest.approx(0.5) and low == 0  # a draw of the first clip alone shows no difference
    assert high == pytest.approx(2 / 3)
    assert schemes.verdict(schemes.BETTER, 0.01, 0.1) == schemes.verdict(schemes.NOT_WORSE, -0.01, 0.1) == "holds"
    assert schemes.verdict(schemes.BETTER, -0.1, -0.01) == schemes.verdict(schemes.NOT_WORSE, -0.1, -0.03) == "fails"
    assert schemes.verdict(schemes.BETTER, -0.01, 0.1) == schemes.verdict(schemes.NOT_WORSE, -0.03, 0.1) == "undecided"


def test_times_of_operations():
    ops = import_file(BENCH / "ops.py", "bench_ops")
    layer, x = FeedForward(8, 16), torch.ones(2, 3, 8)
    with ops.OpTimes(x.device) as times:
        layer(x).sum().backward()
    called = {(group, name, line.split(":")[0]) for group, name, line in times.calls}
    assert ("matrix products", "mm", "layers/linear.py") in called
    assert ("other", "gelu", "layers/transformer.py") in called
    assert any(name == "gelu_backward" for _, name, _ in called)
    assert ops.group_of("_scaled_dot_product_flash_attention_for_cpu_backward") == "attention"
    assert {"matrix", "other"} <= {line.split()[0] for line in times.table(rows=0).splitlines()}
