"""The golden numbers of the release's generator: layouts, logits, greedy ids, guidance, filters, loss, learning rates.

Its seeded draws are not here: they consume one shared random stream, where every sample of ours has its own.
"""

import json

import numpy as np
import pytest
import torch

from sweettok.generator.config import GeneratorConfig
from sweettok.generator.model import Cache, CausalTransformer
from sweettok.generator.sampling import filter_logits, guide
from sweettok.generator.sequence import SequenceLayout
from sweettok.losses.terms import word_losses
from sweettok.tokenizer.layout import TokenLayout
from sweettok.train.config import OptimizerConfig
from sweettok.train.optim import lr_factor

ATOL = 1e-4  # of logits with a deviation of 1; float32 against float64 differs by 2e-6


@pytest.fixture(scope="module")
def golden(golden_folder):
    arrays = {name: torch.from_numpy(value) for name, value in np.load(golden_folder / "generator.npz").items()}
    return arrays, json.loads((golden_folder / "generator.json").read_text())


def import_released(released: dict, model: CausalTransformer) -> None:
    """The release keeps query, key and value apart."""
    state = {}
    for name in model.state_dict():
        names = [
            name.replace("tokens.weight", "tok_emb.weight")
            .replace("positions", "pos_emb")
            .replace("norm1", "ln1")
            .replace("norm2", "ln2")
            .replace("attention.out", "attn.proj")
        ]
        if name.startswith("norm."):
            names = [name.replace("norm.", "ln_f.")]
        if "qkv" in name:
            names = [name.replace("attention.qkv", f"attn.{part}") for part in ("query", "key", "value")]
        state[name] = torch.cat([torch.from_numpy(released.pop(part)) for part in names])
    state["positions"] = state["positions"].squeeze(0)
    assert not released
    model.load_state_dict(state)


@pytest.fixture(scope="module")
def model(golden, golden_rule):
    sizes = golden[1]["small_config"]
    config = GeneratorConfig(dim=sizes["n_embd"], num_layers=sizes["n_layer"], num_heads=sizes["n_head"])
    model = CausalTransformer(config, sizes["vocab_size"], sizes["block_size"]).eval()
    import_released(golden_rule.fill(golden[1]["small_param_shapes"]), model)
    assert sum(param.numel() for param in model.parameters()) == golden[1]["small_n_params"]
    assert not list(model.buffers())
    return model.requires_grad_(False)


def greedy(prompts, models, choose, steps):
    """Cached greedy continuation of several streams that read the same ids; logits of each stream and step."""
    caches = [Cache(model.config.num_layers, model.block_size) for model in models]
    unread, ids, logits = list(prompts), [], []
    for step in range(steps):
        streams = zip(models, unread, caches, strict=True)
        logits.append([model.logits(model(new, cache)[:, -1]) for model, new, cache in streams])
        ids.append(choose(step, *logits[-1]).argmax(-1))
        unread = [ids[-1][:, None]] * len(models)
    return torch.stack(ids, 1), [torch.stack(stream, 1) for stream in zip(*logits, strict=True)]


def test_logits_and_loss_of_the_next_id(golden, model):
    arrays, facts = golden
    logits = model.logits(model(arrays["ids"]))
    torch.testing.assert_close(logits, arrays["logits"], rtol=0, atol=ATOL)
    plain = word_losses(logits[:, :-1], arrays["ids"][:, 1:], 0.1).plain.mean().item()
    assert plain == pytest.approx(facts["next_token_cross_entropy_fp32"], abs=1e-5)


def test_greedy_ids_with_the_cache_and_without(golden, model):
    arrays = golden[0]
    ids, (logits,) = greedy([arrays["greedy_prompt"]], [model], lambda _, logits: logits, 24)
    assert ids.equal(arrays["greedy_full"])
    torch.testing.assert_close(logits, arrays["greedy_full_logits"], rtol=0, atol=ATOL)
    context = arrays["greedy_prompt"]
    for step in range(24):
        full = model.logits(model(context)[:, -1])
        torch.testing.assert_close(full, logits[:, step], rtol=0, atol=ATOL)
        context = torch.cat((context, full.argmax(-1, keepdim=True)), 1)
    assert context[:, 8:].equal(arrays["greedy_full"])


@pytest.fixture(scope="module")
def skipping(model):
    """The release's stream without class: start token alone, then ids at places 2, 3, ... as after a class."""
    twin = CausalTransformer(model.config, len(model.tokens.weight), model.block_size - 1).eval()
    places = [0, *range(2, model.block_size)]
    twin.load_state_dict({**model.state_dict(), "positions": model.positions[places]})
    return twin.requires_grad_(False)


@pytest.mark.parametrize(
    ("name", "scale", "growth", "class_first", "skips"),
    [
        ("cfg05_noscale", 1.5, 0.0, False, True),
        ("cfg15_noscale_classfirst", 2.5, 0.0, True, True),
        ("cfg05_scale", 1.0, 0.5, False, True),
        ("hardcfg05", 1.0, 0.5, False, False),
    ],
)
def test_guided_greedy_ids(golden, model, skipping, name, scale, growth, class_first, skips):
    arrays, facts = golden
    class_ids = torch.tensor(facts["cfg"]["class_ids_after_call"])
    prompt = torch.stack((torch.zeros_like(class_ids), class_ids), 1)
    prompts = [prompt.flip(1) if class_first else prompt, prompt[:, :1]]

    def blend(step, conditional, unconditional):
        return guide(conditional, unconditional, scale + growth * step)

    ids, streams = greedy(prompts, [model, skipping if skips else model], blend, 24)
    assert ids.equal(arrays[f"{name}_ids"])
    for stream, side in zip(streams, ("cond", "uncond"), strict=True):
        if f"{name}_{side}_logits" in arrays:
            torch.testing.assert_close(stream, arrays[f"{name}_{side}_logits"], rtol=0, atol=ATOL)


def test_blends(golden):
    arrays = golden[0]
    conditional, unconditional = arrays["cfg_pair_cond_uncond"]
    for t in ("0.5", "1.5"):
        blend = guide(conditional, unconditional, 1 + float(t))
        torch.testing.assert_close(blend, arrays[f"cfg_blend_t{t}"], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "top_k", "top_p"),
    [("k50", 50, None), ("p0.9", None, 0.9), ("k50_p0.9", 50, 0.9), ("k4096_p0.9", 4096, 0.9), ("p1e-9", None, 1e-9)],
)
def test_filters(golden, name, top_k, top_p):
    logits = golden[0]["filter_logits_f64"]
    given = logits.clone()
    assert filter_logits(logits, top_k, top_p).isfinite().equal(golden[0][f"keep_{name}"])
    assert logits.equal(given)


def test_filter_keeps_ties(golden):
    ties = golden[1]["filters"]["ties"]
    assert filter_logits(torch.tensor([ties["logits"]]), 2).isfinite()[0].tolist() == ties["k2_kept"]


def test_smoothed_loss(golden):
    arrays, facts = golden
    losses = word_losses(arrays["loss_logits"], arrays["loss_targets"], facts["loss"]["label_smoothing"])
    assert losses.smoothed.mean().item() == pytest.approx(facts["loss"]["loss"], abs=1e-6)
    assert losses.plain.mean().item() == pytest.approx(facts["loss"]["plain_cross_entropy"], abs=1e-6)
    assert losses.correct.mean().item() == facts["loss"]["true_accuracy"]


def test_learning_rates(golden):
    facts = golden[1]["lr"]["transformer_generate"]
    optimizer = OptimizerConfig(lr=facts["base"], end_lr=facts["end"], warmup_steps=facts["warmup"])
    for step, rate in facts["lr_at_step"].items():
        factor = lr_factor(int(step), optimizer.warmup_steps, facts["total"], optimizer.lr, optimizer.end_lr)
        assert optimizer.lr * factor == pytest.approx(rate, rel=1e-9, abs=1e-18)


# --------------------------------------------------------------------------------------------------------- sequences


def test_sequence_of_the_release_place_by_place(golden):
    """Only the separators differ: each is one higher, so that the first is not the start token again."""
    arrays = golden[0]
    sequence = SequenceLayout(TokenLayout(), num_classes=101)
    local = arrays["layout3840_in"].long()
    target, released = sequence.target(sequence.layout.to_global(local)), arrays["layout3840_sos_target"].long()
    separators = torch.tensor([0, 513, 514, 771, 772, 2821, 2822, 3847])
    assert (target != released).nonzero()[:, 1].unique().equal(separators)
    assert (target - released)[:, separators].eq(1).all()
    fed = torch.cat((sequence.prompt(arrays["layout_class"]), target[:, :-1]), 1)
    expected = arrays["layout3840_sos_fed"].long()
    expected[:, 2 + separators[:-1]] += 1
    assert fed.equal(expected)
    assert sequence.block_size == fed.shape[1] == 3849


def test_sequence_of_the_paper_place_by_place(golden):
    arrays = golden[0]
    sequence = SequenceLayout(TokenLayout(lookup="union"), num_classes=101)
    target = sequence.target(sequence.layout.to_global(arrays["layout1280_in"].long()))
    assert target.equal(arrays["layout1280_sos_target"].long())
    fed = torch.cat((sequence.prompt(arrays["layout_class"]), target[:, :-1]), 1)
    assert fed.equal(arrays["layout1280_sos_fed"].long())
    assert (sequence.vocab_size, sequence.block_size) == (21726, 1285)
