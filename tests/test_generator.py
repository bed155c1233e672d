"""The generator's model and its sampling: only legal words, the same for any batch, with the cache and without."""

import math

import pytest
import torch
from host_waits import HostWaits
from test_sequence import SMALL, SMALL_UNION, some_ids, words_of

from sweettok import Generator
from sweettok.generator import transformer as module
from sweettok.generator.config import GeneratorConfig, SamplingConfig
from sweettok.generator.sampling import draw, filter_logits, random_streams, scale_at
from sweettok.generator.transformer import Cache
from sweettok.tokenizer.layout import TokenLayout

NAMES = ("run", "walk", "fly")
VARIANTS = {
    "release": {},
    "rotary": {"positions": "rotary"},
    "qk_norm": {"qk_norm": True},
    "tied": {"tied_head": True},
    "all": {"positions": "rotary", "qk_norm": True, "tied_head": True},
}


def make(layout=SMALL, num_classes=3, seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {"dim": 32, "num_layers": 2, "num_heads": 4, "layout": layout, "num_classes": num_classes, **changes}
    model = Generator(GeneratorConfig(**sizes), NAMES if num_classes == 3 else None)
    for param in model.parameters():  # away from zeros and ones
        torch.nn.init.normal_(param, std=0.3) if param.ndim > 1 else param.data.add_(0.1 * torch.randn_like(param))
    return model.eval()


@pytest.fixture(scope="module")
def model():
    return make()


# ------------------------------------------------------------------------------------------------------------ model


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_cache_changes_nothing(variant):
    """Read at once, word by word, or in pieces, the logits are the same."""
    model = make(**VARIANTS[variant])
    body, sequence = model.transformer, model.sequence
    ids = torch.cat((sequence.prompt(torch.tensor([0, 2])), sequence.target(some_ids(SMALL))), 1)[:, :-1]
    with torch.no_grad():
        full = body.logits(body(ids))
        for pieces in ([1] * ids.shape[1], [5, 1, 3, ids.shape[1] - 9]):
            cache = Cache(2, ids.shape[1])
            parts = torch.cat([body.logits(body(piece, cache)) for piece in ids.split(pieces, 1)], 1)
            torch.testing.assert_close(parts, full, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 4, 5, 16, 17])
@torch.no_grad()
def test_large_weights_of_few_rows(rows, monkeypatch):
    """Transposed, in blocks and whole, a product is the same."""
    monkeypatch.setattr(module.Linear, "CACHED", 0)
    monkeypatch.setattr(module.Linear, "BLOCK", 5)
    layer = module.Linear(8, 12)
    for x in (torch.randn(rows, 8), torch.randn(rows, 1, 8), torch.randn(1, rows, 8)):
        expected = torch.nn.functional.linear(x, layer.weight, layer.bias)
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_nothing_looks_ahead(variant):
    model = make(**VARIANTS[variant])
    prompt, target = model.sequence.prompt(torch.tensor([1])), model.sequence.target(some_ids(SMALL, 1))
    changed = target.clone()
    changed[:, 10] = model.sequence.word_start
    with torch.no_grad():
        one, other = model(prompt, target), model(prompt, changed)
    assert one[:, :11].equal(other[:, :11])
    assert not torch.allclose(one[:, 11:], other[:, 11:])


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_of_the_target_s_places_and_gradients_reach_everything(variant):
    model = make(class_dropout=0.1, **VARIANTS[variant])
    target = model.sequence.target(some_ids(SMALL))
    logits = model(model.sequence.prompt(torch.tensor([1, -1])), target)
    assert logits.shape == (2, model.sequence.target_length, model.sequence.vocab_size)
    logits.square().mean().backward()
    without = [name for name, param in model.named_parameters() if param.grad is None or not param.grad.any()]
    assert not without


@pytest.mark.parametrize("layout", [SMALL, SMALL_UNION])
def test_frame_prediction_reads_the_given_clip(layout):
    model = make(layout, num_classes=0, given_frames=5)
    given, ids = some_ids(layout, 2, seed=1), some_ids(layout, 2)
    logits = model(model.sequence.prompt(given), model.sequence.target(ids))
    assert logits.shape[1] == model.sequence.target_length
    other = model(model.sequence.prompt(given.roll(1, 0)), model.sequence.target(ids))
    assert not torch.allclose(logits, other)


def test_checkpointing_changes_no_gradient():
    def gradients(recompute):
        model = make().train()
        model.transformer.gradient_checkpointing = recompute
        target = model.sequence.target(some_ids(SMALL))
        model(model.sequence.prompt(torch.tensor([0, 1])), target).square().mean().backward()
        return [param.grad for param in model.parameters()]

    for one, other in zip(gradients(False), gradients(True), strict=True):
        assert one.equal(other)


def test_sizes_of_the_release():
    """Counted, not made: the body of 680.0M and what our block and vocabulary add to it."""
    with torch.device("meta"):
        model = Generator(GeneratorConfig(layout=TokenLayout(), num_classes=101))
    body = sum(param.numel() for param in model.transformer.blocks.parameters())
    assert body == 679_956_480
    assert sum(param.numel() for param in model.parameters()) == body + 1536 * (2 * 21731 + 3849 + 2)
    assert not list(model.buffers())


def test_1_9_billion():
    from sweettok.config import build

    with torch.device("meta"):
        config = build(GeneratorConfig, {"dim": 2048, "num_layers": 36, "layout": {}, "num_classes": 101})
        model = Generator(config)
    assert sum(param.numel() for param in model.parameters()) == pytest.approx(1.9e9, rel=0.02)


def test_more_positions_than_the_block(model):
    with pytest.raises(ValueError, match="exceed this generator's block of"):
        model.transformer(torch.zeros(1, model.sequence.block_size + 1, dtype=torch.long))


def test_initial_logits_are_nearly_even():
    """Fresh weights give a loss near that of guessing evenly."""
    torch.manual_seed(0)
    model = Generator(GeneratorConfig(dim=64, num_layers=2, num_heads=4, layout=SMALL, num_classes=3))
    logits = model(model.sequence.prompt(torch.tensor([0])), model.sequence.target(some_ids(SMALL, 1)))
    assert logits.log_softmax(-1).mean().item() == pytest.approx(-math.log(model.sequence.vocab_size), abs=0.5)


# --------------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("layout", [SMALL, SMALL_UNION])
def test_only_legal_words_are_drawn(layout):
    ids = make(layout).sample([0, 1, 2, 0, 1, 2], temperature=50.0)
    layout.check(ids)
    for segment in layout.segments:  # nearly even at this temperature: both ends of each list appear
        words = ids[:, segment.places] - segment.vocab_start
        assert words.max() - words.min() >= segment.vocab_size // 2


@pytest.mark.parametrize(
    "settings", [{}, {"cfg_scale": 3.0, "top_k": 4, "top_p": 0.9}, {"cfg_scale": 4.0, "cfg_schedule": "linear"}]
)
def test_a_sample_depends_on_seed_and_index_alone(model, settings):
    labels = [0, 1, 2, 0, 1, 2, 1]
    together = model.sample(labels, seed=5, **settings)
    alone = torch.cat([model.sample([c], indices=[i], seed=5, **settings) for i, c in enumerate(labels)])
    assert together.equal(alone)
    order = [3, 6, 0]
    shuffled = model.sample([labels[i] for i in order], indices=order, seed=5, **settings)
    assert shuffled.equal(together[order])
    assert not model.sample(labels, seed=6, **settings).equal(together)


def test_equal_conditions_give_different_samples(model):
    assert len(model.sample([1] * 4).unique(dim=0)) == 4


def test_scale_one_is_no_guidance(model):
    labels = torch.tensor([0, 1, 2])
    assert model.sample(labels, cfg_scale=1.0).equal(model.sample(labels))
    assert model.sample(labels, cfg_scale=1.0 + 1e-7).equal(model.sample(labels))
    assert not model.sample(labels, cfg_scale=4.0).equal(model.sample(labels))


def test_scale_zero_is_the_null_class(model):
    given = model.sample(torch.tensor([0, 1]), cfg_scale=0.0)
    assert given.equal(model.sample(torch.tensor([-1, -1])))


def test_temperature_zero_is_the_likeliest_word(model):
    """Against a plain loop without cache, over the whole vocabulary with illegal ids masked out."""
    sequence = model.sequence
    context = sequence.prompt(torch.tensor([0, 2]))
    for run, segment in zip(sequence.separators, SMALL.segments, strict=True):
        context = torch.cat((context, torch.tensor(run).expand(2, -1)), 1)
        for _ in range(segment.length):
            with torch.no_grad():
                logits = model.transformer.logits(model.transformer(context)[:, -1])
            legal = torch.full_like(logits, -torch.inf)
            first = sequence.word_start + segment.vocab_start
            legal[:, first : first + segment.vocab_size] = 0
            context = torch.cat((context, (logits + legal).argmax(-1, keepdim=True)), 1)
    ids = words_of(sequence, context[:, sequence.prompt_length :])
    assert model.sample([0, 2], temperature=0.0).equal(ids)
    assert model.sample([0, 2], temperature=0.0, seed=9).equal(ids)
    assert model.sample([0, 2], top_k=1).equal(ids)


def test_draws_follow_the_distribution():
    logits = torch.tensor([[0.1, 0.2, 0.0, 0.7]]).log().expand(20000, -1)
    words = draw(logits, random_streams(0, [0], 20000)[0])
    shares = words.bincount(minlength=4) / 20000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.2, 0.0, 0.7]), rtol=0, atol=0.015)
    assert shares[2] == 0


def test_the_ends_of_the_chances_are_words_that_may_be_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, 0.0, -torch.inf]])
    assert draw(logits, torch.tensor([1.0], dtype=torch.float64)).item() == 2
    assert draw(logits, torch.tensor([2.0**-53], dtype=torch.float64)).item() == 1


def test_random_streams_are_of_seed_and_index():
    streams = random_streams(0, [0, 1, 2], 100)
    assert streams[1].equal(random_streams(0, [1], 100)[0])
    assert len({*streams.flatten().tolist(), *random_streams(1, [0], 100)[0].tolist()}) == 400
    assert streams.min() > 0
    assert streams.max() <= 1


def test_no_filter_keeps_everything():
    logits = torch.randn(2, 6)
    for settings in ({}, {"top_k": 6}, {"top_k": 100}, {"top_p": 1.0}):
        assert filter_logits(logits, **settings).equal(logits)


def test_guidance_schedules():
    assert [scale_at(3.0, "constant", word, 5) for word in (0, 4)] == [3.0, 3.0]
    assert [scale_at(3.0, "linear", word, 5) for word in range(5)] == [1.0, 1.5, 2.0, 2.5, 3.0]


def test_a_forward_pass_for_each_word_and_no_more(model, monkeypatch):
    """Separators are read with the words before them, and nothing is read twice."""
    read = []
    forward = model.transformer.forward
    monkeypatch.setattr(model.transformer, "forward", lambda ids, cache: read.append(ids.shape) or forward(ids, cache))
    words = []
    model.sample([0, 1], cfg_scale=2.0, progress=words.append)
    assert len(read) == len(words) == SMALL.length
    assert {rows for rows, _ in read} == {4}  # both streams are one batch
    # Neither the last word nor the separator after it is read.
    assert sum(places for _, places in read) == model.sequence.block_size - 1


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 0.0}, {"top_k": 3, "top_p": 0.9}, {"cfg_scale": 2.0}], ids=str
)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(settings, value):
    """At the sixth word, the second noun, of the second sample."""
    model = make()
    logits, seen = model.transformer.logits, []

    def broken(hidden, ids):
        scores = logits(hidden, ids)
        seen.append(ids)
        if len(seen) >= 6:
            scores[1, 2] = value
        return scores

    model.transformer.logits = broken
    with pytest.raises(FloatingPointError, match=r"sample 11 at position 5 \(noun 1\) are not finite"):
        model.sample([0, 1], indices=[10, 11], **settings)
    assert len(seen) == 6, "words were drawn after the segment"


def test_broken_weights_never_give_words():
    model = make()
    with torch.no_grad():
        model.transformer.norm.weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"sample 0 at position 0 \(adjective 0\)"):
        model.sample([0, 1])


def test_sampling_waits_once_for_each_segment(model):
    with HostWaits(constants=False) as counter:
        model.sample([0, 1])
    waits = [wait for wait in counter.waits if "sampling.py" in wait]
    assert len(waits) == len(SMALL.segments)


@pytest.mark.parametrize(
    ("variant", "settings"),
    [({}, {}), ({"positions": "rotary", "qk_norm": True}, {"cfg_scale": 2.0, "top_k": 5})],
    ids=str,
)
def test_compiled_steps_draw_the_same_words(variant, settings, monkeypatch):
    """One graph for each number of positions that attention reads; the starts of segments are not compiled."""
    model, compiling, graphs = make(**variant), torch.compile, []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def whole(step, *, dynamic, mode):
        return compiling(step, backend=backend, dynamic=dynamic, fullgraph=True)

    monkeypatch.setattr(torch, "compile", whole)
    monkeypatch.setattr("sweettok.generator.model.GRAPH_LENGTH", 8)
    torch._dynamo.reset()
    plain = model.sample([0, 1, 2], **settings)
    assert model.sample([0, 1, 2], compiled=True, **settings).equal(plain)
    assert model.sequence.block_size == 24 and len(graphs) == 3  # of 8, 16 and 24 positions
    torch._dynamo.reset()


def test_unconditional():
    model = make(num_classes=0)
    ids = model.sample(num_samples=3)
    SMALL.check(ids)
    assert ids[1:2].equal(model.sample(num_samples=1, indices=[1]))


def test_given_frames():
    model = make(num_classes=0, given_frames=5)
    given = some_ids(SMALL, 2, seed=3)
    ids = model.sample(given=given)
    SMALL.check(ids)
    assert not ids.equal(model.sample(given=given.roll(1, 0)))


def test_the_caller_s_tensors_stay_as_they_are(model):
    labels = torch.tensor([0, 1])
    model.sample(labels, cfg_scale=2.0)
    assert labels.tolist() == [0, 1]


def test_class_names(model):
    assert model.sample(["walk", 2, "run"]).equal(model.sample([1, 2, 0]))


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"labels": ["swim"]}, "no class 'swim'; this generator's classes are run, walk, fly"),
        ({"labels": [3]}, "0..2 for each clip; got class 3"),
        ({"labels": "run"}, r"labels must be a list, one for each sample; got 'run': give \['run'\]"),
        ({"labels": 2}, r"got 2: give \[2\]"),
        ({}, "samples need labels, one for each sample, and nothing else; got nothing"),
        ({"labels": [0], "num_samples": 1}, "samples need labels, one for each sample, and nothing else"),
        ({"labels": [0], "given": torch.zeros(1, 23)}, "samples need labels, one for each sample, and nothing else"),
        ({"labels": []}, "number of samples must be at least 1"),
        ({"labels": [0], "indices": [1, 2]}, "2 indices for 1 samples"),
        ({"labels": [0], "top_p": 0.0}, r"top_p must be in \(0, 1\]"),
        ({"labels": [0], "top_p": 1.5}, r"top_p must be in \(0, 1\]"),
        ({"labels": [0], "top_k": 0}, "top_k must be at least 1"),
        ({"labels": [0], "temperature": -1.0}, "temperature must be a number of at least 0"),
        ({"labels": [0], "temperature": 1e-300}, "temperature must be 0 .* or at least 0.0001; got 1e-300"),
        ({"labels": [0], "cfg_scale": math.nan}, "cfg_scale must be a number of at least 0"),
        ({"labels": [0], "cfg_schedule": "cubic"}, "cfg_schedule must be one of constant, linear"),
    ],
)
def test_what_cannot_be_sampled(model, call, message):
    with pytest.raises(ValueError, match=message):
        model.sample(**call)


def test_guidance_needs_a_null_class():
    with pytest.raises(ValueError, match="needs a null class"):
        make(class_dropout=0.0).sample([0], cfg_scale=2.0)
    with pytest.raises(ValueError, match="needs a null class"):
        make(num_classes=0).sample(num_samples=1, cfg_scale=2.0)


def test_frame_prediction_needs_what_is_given():
    model = make(num_classes=0, given_frames=5)
    with pytest.raises(ValueError, match="samples need given"):
        model.sample([0])
    with pytest.raises(ValueError, match="is no noun"):
        model.sample(given=torch.zeros(1, SMALL.length))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layout": None}, "must be set"),
        ({"num_classes": None}, "must be set"),
        ({"num_heads": 5}, "does not divide into 5 heads"),
        ({"positions": "sine"}, "learned, rotary"),
        ({"class_dropout": 1.0}, "class_dropout must be in"),
        ({"given_frames": 5}, "classes or on given frames"),
    ],
)
def test_generators_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


# -------------------------------------------------------------------------------------------------------- on the disk


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_and_loaded(tmp_path, variant):
    model = make(**VARIANTS[variant], tokenizer_hash="abc")
    model.save_pretrained(tmp_path)
    loaded = Generator.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert loaded.class_names == NAMES
    assert loaded.sample([0, 1]).equal(model.sample([0, 1]))


def test_settings_are_those_of_the_configuration(model):
    with pytest.raises(TypeError, match="top_n"):
        model.sample([0], top_n=3)
    assert SamplingConfig().guided is False


def test_half_precision_draws_legal_words():
    model = make().to(torch.bfloat16)
    SMALL.check(model.sample([0, 1], cfg_scale=2.0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        SMALL.check(make().sample([0, 1], cfg_scale=2.0))


def test_blocks_of_weights_change_nothing(model, monkeypatch):
    """Large layers are multiplied block by block for a few rows on a CPU."""
    whole = model.sample([0, 1, 2] * 2, seed=2)
    monkeypatch.setattr(module.Linear, "BLOCK", 16)
    assert model.sample([0, 1, 2] * 2, seed=2).equal(whole)
