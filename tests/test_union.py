"""One word per query, the nearest of its two lists together (paper): from the configuration to training."""

from pathlib import Path

import naive
import pytest
import stages
import tiny
import torch

from sweettok import SweetTok, convert
from sweettok.eval.tokenizers import round_trip
from sweettok.losses.config import QuantizerLossConfig
from sweettok.pixels import to_uint8
from sweettok.stages import load_config
from sweettok.stages.codes import CodePredictor
from sweettok.stages.stage1 import start_from
from sweettok.tokenizer.codebook import LanguageCodebook
from sweettok.tokenizer.layout import TokenLayout
from sweettok.tokenizer.quantizer import LanguageQuantizer
from sweettok.tokenizer.release import TOKENIZER

PAPER = Path(__file__).resolve().parent.parent / "configs" / "paper"
GRAPHS = {"spatial": tiny.prior().spatial, "temporal": tiny.prior().temporal}
RECIPE = {
    "lookup": "union",
    "spatial_source": "first_frame",
    "temporal_source": "first_frame_residuals",
    "block": tiny.block(temporal_peg="grid"),
}


@pytest.fixture(scope="module")
def model():
    return tiny.tokenizer(tiny.union_config())


@pytest.fixture(scope="module")
def video():
    return tiny.clips(0, 1, 2)


def quantizer(side="spatial"):
    codebook = LanguageCodebook(GRAPHS[side], hidden=10, out_dim=8, dropout=0.5)
    return LanguageQuantizer(tiny.fill(codebook), 2, "union").eval()


def numbers(name, *shape):
    return torch.from_numpy(tiny.normal(name, shape)).float()


# ----------------------------------------------------------------------------------------------------------- lookup


@torch.no_grad()
@pytest.mark.parametrize("side", GRAPHS)
def test_the_nearest_word_of_both_lists(side):
    module, z = quantizer(side), torch.nn.functional.normalize(numbers("z", 3, 40, 8), dim=-1)
    found, codes = module(z), module.codebook().double().numpy()
    (ids,), ((latent, code),) = found.ids, found.halves
    for b in range(3):
        words, output = naive.union_lookup(z[b].double().numpy(), codes)
        assert ids[b].tolist() == words
        assert tiny.relative_error(found.output[b], output) < 1e-6
    boundary = GRAPHS[side].num_modifiers
    assert (ids < boundary).any() and (ids >= boundary).any(), "only one of the two lists was found"
    assert ids.dtype == torch.int64 and torch.equal(latent, z) and torch.equal(code, found.output)
    assert torch.equal(module.lookup(ids), found.output)


def test_straight_through_hands_the_gradient_to_z_unchanged():
    module = quantizer().train()
    z, g = numbers("z", 2, 5, 8).requires_grad_(), numbers("g", 2, 5, 8)
    module(z).output.backward(g)
    assert torch.equal(z.grad, g)
    assert all(p.grad is None for p in module.parameters()), "codes learn from their losses alone"


@torch.no_grad()
def test_lookup_is_float32_under_autocast():
    module = quantizer()
    z = torch.nn.functional.normalize(numbers("z", 2, 500, 8), dim=-1)
    plain = module(z)
    module.codebook.refresh()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = module(z)
        table = module.tables()[0]
        rounded = (z.flatten(0, 1) @ table.T - 0.5 * table.square().sum(1)).argmax(1)
    assert (rounded != plain.ids[0].flatten()).any(), "these latents cannot tell bfloat16 from float32"
    assert torch.equal(cast.ids[0], plain.ids[0]) and torch.equal(cast.output, plain.output)


@torch.no_grad()
@pytest.mark.parametrize("sizes", [(24,), (11, 13)])
def test_codes_start_centred_over_the_lists_that_are_searched(sizes):
    codebook = LanguageCodebook(GRAPHS["spatial"], hidden=10, out_dim=8, dropout=0.0)
    codebook.start_spread(torch.tensor(0.25), sizes)
    tables = codebook().split(sizes)
    torch.testing.assert_close(sum(table.mean(0) for table in tables), torch.zeros(8), atol=1e-6, rtol=0)
    torch.testing.assert_close(sum(table.std(0) for table in tables) / len(tables), torch.full((8,), 0.25))


def test_unknown_lookup():
    with pytest.raises(ValueError, match="lookup must be one of modifiers_and_head, union; got 'both'"):
        LanguageQuantizer(LanguageCodebook(GRAPHS["spatial"], 10, 8, 0.5), 2, "both")


# -------------------------------------------------------------------------------------------------------- tokenizer


@torch.no_grad()
@pytest.mark.parametrize("changes", [{"lookup": "union"}, RECIPE], ids=["release otherwise", "paper"])
def test_equals_plain_loops(changes):
    config = tiny.tokenizer_config(**changes)
    model, video = tiny.tokenizer(config), tiny.clip(3)
    weights = {
        name: value.double().numpy() for name, value in convert.export_weights(model.state_dict(), TOKENIZER).items()
    }
    expected = naive.tokenizer(weights, video[0].double().numpy(), config, tiny.prior())
    for latent, branch in zip(model.encoder(video), ("spatial", "temporal"), strict=True):
        assert latent.shape[-1] == config.latent_dim == config.codebook_dim
        assert tiny.relative_error(latent[0], expected[branch]) < 1e-5
    assert model.layout.to_local(model.encode(video).ids)[0].tolist() == expected["ids"]
    logits = model.predict(video).logits
    assert tiny.relative_error(logits[0].movedim(0, -1), expected["logits"]) < 1e-5
    assert tiny.relative_error(model.to_pixels(logits)[0], expected["expected"]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("path", ["expected", "argmax"])
@pytest.mark.parametrize("batch", [1, 3])
def test_decoding_the_ids_is_the_forward_pass(video, path, batch):
    model = tiny.tokenizer(tiny.union_config(pixel_path=path))
    ids = model.encode(video[:batch]).ids
    decoded = model.decode(ids)
    assert decoded.shape == (batch, 3, 9, 16, 16) and decoded.std() > 0.05
    assert torch.equal(decoded, model(video[:batch]))
    assert torch.equal(ids, torch.cat([model.encode(clip[None]).ids for clip in video[:batch]]))


@torch.no_grad()
def test_ids(model, video):
    layout, ids = model.layout, model.encode(video).ids
    assert layout == TokenLayout(4, 16, 11, 13, 7, 17, lookup="union")
    assert ids.dtype == torch.int64 and ids.shape == (3, layout.length) == (3, 20)
    layout.check(ids)
    for name, size in (("spatial", 24), ("temporal", 24)):
        words = layout.split(layout.to_local(ids))[name]
        assert words.shape[2] == 1 and words.min() >= 0 and words.max() < size
        assert words.unique().numel() > 2, f"all {name} words are alike: nothing is tested here"
    codes = model.codes(ids)
    assert all(torch.equal(code, found.output) for code, found in zip(codes, model.quantize(video), strict=True))


@torch.no_grad()
def test_a_word_has_the_global_id_that_it_has_in_four_lists(model, video):
    apart = tiny.tokenizer()
    vocabulary = [word for words in apart.encode(video[:1]).vocabulary for word in words]
    assert apart.layout.vocab_size == model.layout.vocab_size == len(vocabulary)
    out = model.encode(video)
    for clip in range(3):
        said = out.words(clip)
        assert said["spatial"] + said["temporal"] == [vocabulary[i] for i in out.ids[clip]]


@torch.no_grad()
def test_words(model, video):
    out = model.encode(video)
    said = out.words(1)
    assert {branch: len(words) for branch, words in said.items()} == {"spatial": 4, "temporal": 16}
    every = {branch: {word for clip in range(3) for word in out.words(clip)[branch]} for branch in said}
    assert every["spatial"] <= set(GRAPHS["spatial"].words) and every["temporal"] <= set(GRAPHS["temporal"].words)
    assert out.words(1, max_queries=2) == {branch: words[:2] for branch, words in said.items()}


@torch.no_grad()
@pytest.mark.parametrize("name", ["spatial", "temporal"])
def test_another_word_changes_the_video(model, video, name):
    ids = model.encode(video[:1]).ids
    segment, changed = model.layout.segment(name), ids.clone()
    place = segment.start + 1
    changed[0, place] = segment.vocab_start + (ids[0, place] - segment.vocab_start + 12) % segment.vocab_size
    assert (model.decode(changed) - model.decode(ids)).abs().max() > 1e-4


@torch.no_grad()
def test_saved_and_loaded(model, video, tmp_path):
    model.save_pretrained(tmp_path)
    again = SweetTok.from_pretrained(tmp_path)
    assert again.config == model.config and again.layout == model.layout
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in again.state_dict().items())
    out = again.encode(video)
    assert torch.equal(out.ids, model.encode(video).ids) and out.words() == model.encode(video).words()
    assert torch.equal(again.decode(out.ids), model.decode(out.ids))
    assert again.ids_hash() == model.ids_hash() != tiny.tokenizer().ids_hash()


@torch.no_grad()
def test_usage_is_counted_for_each_branch(model, video):
    trip = round_trip(model, to_uint8(video))
    assert trip.sizes == {"spatial": 24, "temporal": 24} and trip.bits == model.layout.bits
    assert {name: ids.shape for name, ids in trip.lists.items()} == {"spatial": (3, 4), "temporal": (3, 16)}


# --------------------------------------------------------------------------------------------------------- refusals


def test_published_weights_are_of_the_other_lookup(model, tmp_path):
    released = tiny.tokenizer().to_release()
    with pytest.raises(ValueError, match="published weights are of lookup modifiers_and_head, and .* is union"):
        SweetTok.from_release(released, tiny.prior(), tiny.union_config())
    with pytest.raises(ValueError, match="published weights are of lookup modifiers_and_head"):
        model.to_release()
    torch.save(released, tmp_path / "part.bin")
    with pytest.raises(ValueError, match="published weights are of lookup modifiers_and_head"):
        start_from(model, str(tmp_path / "part.bin"))


def test_configurations_that_do_not_fit():
    with pytest.raises(ValueError, match="a query gives one word: leave tokenizer.modifiers_per_query out; got 1"):
        tiny.union_config(modifiers_per_query=1)
    with pytest.raises(ValueError, match="lookup must be one of modifiers_and_head, union; got 'both'"):
        tiny.tokenizer_config(lookup="both")
    assert tiny.tokenizer_config().latent_dim == 2 * tiny.union_config().latent_dim == 16


# --------------------------------------------------------------------------------------------------------- training


def test_stage1_loss_reaches_every_parameter(video):
    tokenizer = tiny.tokenizer(tiny.union_config(pixel_path="none"))
    predictor = CodePredictor(tokenizer, QuantizerLossConfig(), auxiliary=True).train()
    torch.manual_seed(0)
    logits, terms, spatial, temporal = predictor(video)
    assert spatial.shape == (3, 4, 4) and temporal.shape == (3, 16, 2 * 4)
    loss = torch.nn.functional.cross_entropy(logits, tiny.proxy().encode(video))
    (loss + sum(terms.values()) + spatial.square().mean() + temporal.square().mean()).backward()
    learning = {name: p for name, p in predictor.named_parameters() if p.requires_grad}
    without = [name for name, p in learning.items() if p.grad is None or not p.grad.any()]
    assert not without, f"no gradient for {without}"
    parts = {name.removeprefix("tokenizer.").partition(".")[0] for name in learning}
    assert parts == {"encoder", "spatial_quantizer", "temporal_quantizer", "decoder", "auxiliary"}


def test_quantizer_loss_is_that_of_both_branches(model, video):
    prediction = model.predict(video)
    (spatial,), (temporal,) = prediction.spatial.halves, prediction.temporal.halves
    expected = sum(((z - code) ** 2).mean() for z, code in (spatial, temporal))
    _, terms = CodePredictor(model, QuantizerLossConfig())(video)
    torch.testing.assert_close(terms["quantizer_encoder_side"], expected)
    torch.testing.assert_close(terms["quantizer_codebook_side"], expected)


def test_stage1_learns_a_clip():
    torch.manual_seed(0)
    model = SweetTok(tiny.tokenizer_config(**RECIPE, pixel_path="argmax", graph_dropout=0.0), tiny.prior())
    proxy, video = tiny.proxy(), tiny.clip()
    model.use_proxy(proxy)
    model.warm_start(video)
    codes = proxy.encode(video)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(60):
        loss = tiny.stage1_loss(model, video, codes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0], f"{losses[0]:.3f} -> {losses[-1]:.3f}"
    accuracy = (model.eval().predict(video).logits.argmax(1) == codes).float().mean()
    assert accuracy > 0.9, f"{accuracy:.2f} of the proxy's codes"


def test_both_stages_train(runs, tmp_path, fresh_accelerator):
    """By the script, from the proxy and the prior of the other stages' tests, with warm start and auxiliary layer."""
    for stage, change in {"stage1": "tokenizer.lookup=union", "stage2": f"tokenizer={tmp_path}/stage1/final"}.items():
        settings = [str(runs / f"{stage}.yaml"), change, f"train.output_dir={tmp_path / stage}"]
        assert stages.command(["train", *settings]) == 0
        stages.AcceleratorState._reset_state(reset_partial_state=True)
    first, second = (SweetTok.from_pretrained(tmp_path / stage / "final") for stage in ("stage1", "stage2"))
    assert first.config.lookup == second.config.lookup == "union"
    assert first.ids_hash() == second.ids_hash()
    decoders = first.decoder.parameters(), second.decoder.parameters()
    assert any(not torch.equal(before, after) for before, after in zip(*decoders, strict=True))
    video = to_uint8(tiny.clip(num_frames=5, height=32, width=32))
    ids = first.encode(video).ids
    assert ids.shape == (1, 4 + 16) and torch.equal(second.decode(ids), second(video))


# ---------------------------------------------------------------------------------------------------- configurations


def test_configurations_of_the_paper():
    first, second = (load_config(PAPER / f"{stage}.yaml") for stage in ("stage1", "stage2"))
    config = first.tokenizer
    assert (config.lookup, config.spatial_source, config.decoder_order) == ("union", "first_frame", "first_frame")
    assert (config.temporal_source, config.block.temporal_peg) == ("first_frame_residuals", "grid")
    assert config.num_spatial_queries + config.num_temporal_queries == 1280 and config.latent_dim == 256
    assert config.proxy.block.temporal_peg == "scrambled", "the published proxy is of this grid"
    assert second.tokenizer == f"{first.train.output_dir}/final"
    assert (second.loss.reconstruction, second.loss.perceptual.kind) == ("l2", "lpips")
    for run in (first, second):
        assert (run.optimizer.lr, run.optimizer.end_lr, run.train.global_batch_size) == (1e-4, 1e-5, 64)
    assert first.train.max_steps + second.train.max_steps == 1_000_000
