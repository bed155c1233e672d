"""Published names and shapes, in both directions, and files that are not what they should be."""

import argparse
import json
import os
import pickle
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import tiny
import torch

from sweettok import ProxyTokenizer, SweetTok, convert
from sweettok.priors import save_prior
from sweettok.priors.graph import Prior, WordGraph
from sweettok.tokenizer.config import TokenizerConfig
from sweettok.tokenizer.release import TOKENIZER

CONFIG = tiny.tokenizer_config()


@pytest.fixture(scope="module")
def video():
    return tiny.clips(0, 1)


@pytest.fixture(scope="module")
def model():
    return tiny.tokenizer()


@pytest.fixture(scope="module")
def proxy():
    return tiny.proxy()


@pytest.fixture
def released(model):
    return model.to_release()


def load(weights, **options):
    return SweetTok.from_release(weights, **{"priors": tiny.prior(), "config": CONFIG, **options})


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


# -------------------------------------------------------------------------------------------------------- round trip


@torch.no_grad()
def test_tokenizer_round_trip(model, released, video):
    again = load(released)
    assert again.config == model.config and not again.training
    assert same(again.state_dict(), model.state_dict())
    assert torch.equal(again(video), model(video))
    assert torch.equal(again.encode(video).ids, model.encode(video).ids)
    assert same(again.to_release(), released)


@torch.no_grad()
@pytest.mark.parametrize("case", ["wide", "small patches", "other depths"])
def test_tokenizer_round_trip_at_other_sizes(case):
    config = {
        "wide": tiny.tokenizer_config(tiny.proxy_config(width=24), spatial_query_grid=(2, 4)),
        "small patches": tiny.tokenizer_config(tiny.proxy_config(8, 8, patch_size=2, temporal_patch_size=2)),
        "other depths": tiny.tokenizer_config(
            encoder_spatial="wt", decoder_spatial="wt", decoder_temporal="t", num_null_kv=0, modifiers_per_query=1
        ),
    }[case]
    model = tiny.tokenizer(config)
    video = tiny.clip(0, config.num_frames, config.height, config.width)
    assert torch.equal(load(model.to_release(), config=config)(video), model(video))


@torch.no_grad()
def test_proxy_round_trip(proxy, video):
    released = proxy.to_release()
    again = ProxyTokenizer.from_release(released, proxy.config)
    assert again.config == proxy.config and not again.training
    assert same(again.state_dict(), proxy.state_dict())
    assert torch.equal(again.decode(again.encode(video)), proxy.decode(proxy.encode(video)))
    assert same(again.to_release(), released)


def test_published_form_shares_no_memory(model, released):
    """Neither with the model it was made from, nor with one that was loaded from it."""
    kept = {name: value.clone() for name, value in released.items()}
    loaded = load(released)
    for value in released.values():
        value.zero_()
    assert same(model.to_release(), kept) and same(loaded.to_release(), kept)


@torch.no_grad()
def test_arrays_of_any_kind(model, released, video):
    expected = model(video)
    for kind in (torch.Tensor.numpy, torch.Tensor.double, lambda value: torch.nn.Parameter(value, False)):
        assert torch.equal(load({name: kind(value) for name, value in released.items()})(video), expected)


@torch.no_grad()
def test_one_by_one_convolutions_and_leading_ones(model, released):
    shapes = {name: tuple(value.shape) for name, value in released.items()}
    assert shapes["encoder.conv_out.weight"] == shapes["encoder.conv_out_temporal.weight"] == (24, 24, 1, 1)
    assert shapes["decoder.ffn.0.weight"] == (20, 24, 1, 1) and shapes["decoder.ffn.2.weight"] == (32, 20, 1, 1)
    assert shapes["decoder.mask_token"] == (1, 1, 24)
    assert shapes["pre_vq_conv_.1.weight"] == (16, 24)
    flat = {name: value.squeeze() if value.ndim == 4 else value for name, value in released.items()}
    assert same(load(flat).state_dict(), load(released).state_dict())


def test_values_go_where_their_names_say(released):
    """One value of each kind, followed by hand."""
    released["encoder.enc_temporal_transformer.layers.1.1.to_kv.weight"][16:, 3] = 7.0
    released["decoder.dec_temporal_latent_transformer.layers.0.1.to_kv.weight"][16 + 5, 2] = 8.0
    released["quantize_temporal.gcn.conv2.bias"][4] = 9.0
    released["decoder.dec_temporal_transformer.1.layers.0.2.null_kv"][1, 3, 6] = 10.0
    released["pixel_decoder.to_pixels.0.bias"][11] = 11.0
    model = load(released)
    assert (model.encoder.temporal.layers[1].self_attn.to_kv.weight[16:, 3] == 7).all()
    assert model.decoder.temporal_latent.layers[0].self_attn.to_v.weight[5, 2] == 8
    assert model.temporal_quantizer.codebook.conv2.bias[4] == 9
    assert model.decoder.motion[1].cross_attn.null_kv[1, 3, 6] == 10
    assert model.pixel_decoder.unpatch.tubes.bias[11] == 11


# ----------------------------------------------------------------------------------------------------- extra, missing


@torch.no_grad()
def test_known_extras_are_dropped(released, proxy, video):
    expected = load(released)(video)
    for name in list(released):
        if "code_book_mapping" in name or "codebook_usage" in name or "spatial_rel_pos_bias" in name:
            released[name] = released[name] + 5
    released["pixel_codebook.codebook_usage"] = torch.ones(1)  # of another shape, too
    assert torch.equal(load(released)(video), expected)

    weights = proxy.to_release()
    extras = (
        "image_discriminator.layers.0.weight",
        "video_discriminator.model0.0.bias",
        "perceptual_model.net.slice1.0.weight",
        "encoder.enc_spatial_transformer.layers.0.1.context_norm.gamma",
    )
    loaded = ProxyTokenizer.from_release(weights | {name: torch.ones(2) for name in extras}, proxy.config)
    assert torch.equal(loaded.encode(video), proxy.encode(video))


@torch.no_grad()
def test_entries_without_effect_may_be_absent_or_anything(released, model, video):
    idle = [name for name in released if any(re.search(pattern, name) for pattern in TOKENIZER.dropped)]
    assert len(idle) > 30
    shapes = {name: released.pop(name).shape for name in idle}
    assert torch.equal(load(released)(video), model(video))
    filled = released | {name: torch.full(shape, 3.0) for name, shape in shapes.items()}
    keys = "decoder.dec_temporal_latent_transformer.layers.0.1.to_kv.weight"
    filled[keys] = filled[keys].clone()
    filled[keys][:16] = 3.0
    assert torch.equal(load(filled)(video), model(video))


def test_problems_are_listed(released):
    del released["decoder.mask_token"]
    del released["quantize.gcn.conv1.bias"]
    released["decoder.ln_pots.weight"] = torch.ones(24)
    released["decoder.ffn.0.bias"] = torch.ones(21)
    released["decoder.decoder_embed.weight"] = torch.ones(18, 32)  # as many values
    with pytest.raises(ValueError) as raised:
        load(released)
    message = str(raised.value)
    assert "missing (2): decoder.mask_token, quantize.gcn.conv1.bias" in message
    assert "not explained by any table (1): decoder.ln_pots.weight" in message
    assert "wrong shape (2): decoder.decoder_embed.weight: (18, 32) given, (24, 24) expected, " in message
    assert "decoder.ffn.0.bias: (21,) given, (20,) expected" in message


def test_a_deeper_model_is_refused(proxy):
    deeper = tiny.proxy(tiny.proxy_config(encoder_temporal="ttt")).to_release()
    with pytest.raises(ValueError, match=r"any table \(\d+\): encoder.enc_temporal_transformer.layers.2"):
        ProxyTokenizer.from_release(deeper, proxy.config)
    with pytest.raises(ValueError, match=r"missing \(\d+\): encoder.enc_temporal_transformer.layers.2"):
        ProxyTokenizer.from_release(proxy.to_release(), tiny.proxy_config(encoder_temporal="ttt"))


def test_weights_of_the_other_model_are_refused(released, proxy):
    with pytest.raises(ValueError, match="published weights do not fit this model. missing"):
        ProxyTokenizer.from_release(released, proxy.config)
    with pytest.raises(ValueError, match="published weights do not fit this model. missing"):
        load(proxy.to_release())


def test_partial_weights(model, released):
    part = {name: value for name, value in released.items() if name.startswith("encoder.enc_spatial_transformer")}
    found = convert.import_weights(model.state_dict(), part, TOKENIZER, partial=True)
    assert found and all(name.startswith("encoder.spatial.") for name in found)
    with pytest.raises(ValueError, match=r"do not fit this model. not explained by any table \(1\): stranger"):
        convert.import_weights(model.state_dict(), part | {"stranger": torch.ones(1)}, TOKENIZER, partial=True)


def test_prior_of_another_width(released):
    prior = tiny.prior()
    wide = WordGraph(prior.spatial.modifiers, prior.spatial.heads, torch.ones(24, 7), prior.spatial.edges)
    with pytest.raises(ValueError, match=r"quantize.gcn.conv1.lin.weight: \(10, 6\) given, \(10, 7\) expected"):
        load(released, priors=Prior(wide, prior.temporal))


def test_unknown_names_of_ours_are_an_error():
    with pytest.raises(KeyError, match="no published name for 'encoder.surprise'"):
        TOKENIZER.released_name("encoder.surprise")


# ------------------------------------------------------------------------------------------------------------ stage 1


@torch.no_grad()
def test_stage1_weights(released, proxy, video):
    stage1 = {name: value for name, value in released.items() if not name.startswith("pixel_")}
    assert len(stage1) < len(released)

    alone = load(stage1)
    assert alone.config.pixel_path == "none" and alone.pixel_decoder is None
    with pytest.raises(ValueError, match="has no pixel decoder"):
        alone.decode(alone.encode(video).ids)

    for source in (proxy, proxy.to_release()):
        model = load(stage1, proxy=source)
        assert model.config.pixel_path == "argmax" and not model.training
        logits = model.predict(video).logits
        assert torch.equal(logits, alone.predict(video).logits)
        assert torch.equal(model.decode(model.encode(video).ids), proxy.decode(logits.argmax(1)).clamp(-0.5, 0.5))
        assert same(model.to_release(), stage1)


def test_stage2_weights_and_a_proxy_contradict_each_other(released, proxy):
    with pytest.raises(ValueError, match="hold a pixel decoder of their own: leave `proxy` out"):
        load(released, proxy=proxy)


def test_proxy_of_other_sizes(released):
    stage1 = {name: value for name, value in released.items() if not name.startswith("pixel_")}
    with pytest.raises(ValueError, match="but the proxy is .*num_codes=16"):
        load(stage1, proxy=tiny.proxy(tiny.proxy_config(num_codes=16)))


# -------------------------------------------------------------------------------------------------------------- files


@torch.no_grad()
def test_files(model, released, video, tmp_path):
    torch.save(released, tmp_path / "stage2.bin")
    save_prior(tiny.prior(), tmp_path / "priors")
    for path, priors in ((tmp_path / "stage2.bin", tmp_path / "priors"), (str(tmp_path / "stage2.bin"), tiny.prior())):
        assert torch.equal(load(path, priors=priors)(video), model(video))


@pytest.fixture
def trainer_settings():
    """An object of a library that whoever reads the file does not have."""
    module = types.ModuleType("some_trainer")

    class Settings(argparse.Namespace):
        pass

    class Mode:
        def __init__(self, *args):
            self.args = args

        def __reduce__(self):
            return type(self), ("fast",)

    for cls in (Settings, Mode):
        cls.__module__, cls.__qualname__ = "some_trainer", cls.__name__
        setattr(module, cls.__name__, cls)
    sys.modules["some_trainer"] = module
    yield {"args": argparse.Namespace(lr=1.0, depth=[1, 2]), "own": Settings(lr=2.0), "mode": Mode(), "kind": Settings}
    sys.modules.pop("some_trainer", None)


@torch.no_grad()
def test_trainer_checkpoint(proxy, video, trainer_settings, tmp_path):
    path = tmp_path / "proxy.ckpt"
    extras = {"video_discriminator.layer.weight": torch.ones(3)}
    torch.save(
        {
            "epoch": 3,
            "state_dict": proxy.to_release() | extras,
            "hyper_parameters": trainer_settings,
            "callbacks": {trainer_settings["kind"]: {"best": 1.0}},
            "optimizer_states": [{"state": {0: torch.ones(2)}}],
        },
        path,
    )
    del sys.modules["some_trainer"]
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    before = set(torch.serialization.get_safe_globals())
    loaded = ProxyTokenizer.from_release(path, proxy.config)
    assert torch.equal(loaded.encode(video), proxy.encode(video))
    assert set(torch.serialization.get_safe_globals()) == before, "the empty classes outlive the call"


class Run:
    """Pickles as a call of `function` with `argument`."""

    def __init__(self, function, argument):
        self.function, self.argument = function, argument

    def __reduce__(self):
        return self.function, (self.argument,)


@pytest.mark.parametrize("place", ["as an entry", "as an entry of the state dict", "as the file"])
@pytest.mark.parametrize("function", [os.system, subprocess.check_output, exec], ids=["system", "subprocess", "exec"])
def test_malicious_files_run_nothing(proxy, place, function, tmp_path):
    path, trace = tmp_path / "proxy.ckpt", tmp_path / "trace"
    argument = {exec: f"open({str(trace)!r}, 'w')", os.system: f"touch {trace}"}.get(function, ["touch", str(trace)])
    bomb, weights = Run(function, argument), proxy.to_release()
    if place == "as an entry":
        content = weights | {"bomb": bomb}
    elif place == "as an entry of the state dict":
        content = {"state_dict": weights | {"bomb": bomb}}
    else:
        content = bomb
    torch.save(content, path)
    with pytest.raises(ValueError):
        ProxyTokenizer.from_release(path, proxy.config)
    assert not trace.exists(), "the file was run"
    pickle.loads(pickle.dumps(bomb))
    assert trace.exists(), "this bomb would not have gone off anyway"


@pytest.mark.parametrize("function", [subprocess.check_output, exec], ids=["subprocess", "exec"])
def test_malicious_settings_beside_the_weights_run_nothing(proxy, function, tmp_path):
    path, trace = tmp_path / "proxy.ckpt", tmp_path / "trace"
    argument = f"open({str(trace)!r}, 'w')" if function is exec else ["touch", str(trace)]
    torch.save({"state_dict": proxy.to_release(), "hyper_parameters": Run(function, argument)}, path)
    ProxyTokenizer.from_release(path, proxy.config)
    assert not trace.exists(), "the file was run"


def test_unreadable_files(tmp_path, released):
    with pytest.raises(FileNotFoundError, match="no weights at .*absent.bin"):
        load(tmp_path / "absent.bin")
    for name, content in (("text", b"not weights"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} cannot be read as weights"):
            load(tmp_path / name)
    torch.save(released, tmp_path / "whole")
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:5000])
    with pytest.raises(ValueError, match="cut cannot be read as weights"):
        load(tmp_path / "cut")
    torch.save([torch.ones(2)], tmp_path / "list")
    with pytest.raises(ValueError, match="list holds a list, not a mapping of names to tensors"):
        load(tmp_path / "list")
    with pytest.raises(FileNotFoundError, match="no complete prior"):
        load(released, priors=tmp_path)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "the weights hold no entries"),
        ({"state_dict": {}}, "the weights hold no entries"),
        ({"epoch": "three"}, "entry 'epoch' of the weights is a str, not an array"),
        ({"optimizer": {"a": 1}}, "entry 'optimizer' of the weights is a dict, not an array"),
        ({"module": object()}, "entry 'module' of the weights is a object, not an array"),
        ([1.0], "weights must be a file or a mapping of names to arrays, got list"),
        (None, "weights must be a file or a mapping of names to arrays, got NoneType"),
    ],
)
def test_things_that_are_no_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        load(weights)
    with pytest.raises(ValueError, match=message):
        ProxyTokenizer.from_release(weights, CONFIG.proxy)


# -------------------------------------------------------------------------------------------------- published names


def published_shapes(golden_folder: Path, name: str) -> dict[str, tuple[int, ...]]:
    recipe = json.loads((golden_folder / f"{name}.json").read_text())
    return {entry: tuple(shape) for entry, shape in {**recipe["shapes"], **recipe["integers"]}.items()}


def graph_of_sizes(modifiers: int, heads: int) -> WordGraph:
    words = (tuple(f"{letter}{i}" for i in range(count)) for letter, count in (("m", modifiers), ("h", heads)))
    with torch.device("cpu"):
        return WordGraph(*words, torch.zeros(modifiers + heads, 64), torch.zeros(2, 0, dtype=torch.int64))


@pytest.fixture
def without_numbers(monkeypatch):
    """Models of any size cost nothing: their tensors have shapes but no values."""
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: tensor)
    with torch.device("meta"):
        yield


def test_tokenizer_has_the_published_names_and_shapes(golden_folder, without_numbers):
    prior = Prior(graph_of_sizes(5078, 5403), graph_of_sizes(1872, 9267))
    ours = SweetTok(TokenizerConfig(), prior).to_release()
    assert {name: tuple(value.shape) for name, value in ours.items()} == published_shapes(golden_folder, "tokenizer_0")


def test_proxy_has_the_published_names_and_shapes(golden_folder, without_numbers):
    ours = ProxyTokenizer().to_release()
    assert {name: tuple(value.shape) for name, value in ours.items()} == published_shapes(golden_folder, "proxy_0")
    assert round(sum(value.numel() for value in ours.values() if value.is_floating_point()) / 1e6, 1) == 53.9
