import copy
import re

import pytest
import torch
from torch import nn
from training_golden import golden_json

from sweettok.priors.graph import Prior, WordGraph
from sweettok.tokenizer.config import TokenizerConfig
from sweettok.tokenizer.model import SweetTok
from sweettok.tokenizer.release import TOKENIZER
from sweettok.train import muon
from sweettok.train.config import OptimizerConfig
from sweettok.train.optim import lr_factor, make_optimizer, make_scheduler, param_groups


class Net(nn.Module):
    """One parameter of each kind that the tokenizers have."""

    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(2, 2)
        self.conv = nn.Conv3d(2, 2, 1)
        self.norm = nn.LayerNorm(2)
        self.words = nn.Embedding(3, 2)
        self.queries = nn.Parameter(torch.zeros(3, 2))
        self.null_kv = nn.Parameter(torch.zeros(2, 2))
        self.q_scale = nn.Parameter(torch.zeros(2))
        self.relative_position_bias_table = nn.Parameter(torch.zeros(3, 2))
        self.rel_pos_bias = nn.Linear(2, 2, bias=False)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def names_of(module, group):
    ids = {id(param) for param in group["params"]}
    return {name for name, param in module.named_parameters() if id(param) in ids}


def test_by_type_decays_matrices_only():
    net = Net()
    decayed, spared = param_groups(net, 0.1)
    assert decayed["weight_decay"] == 0.1 and spared["weight_decay"] == 0.0
    assert names_of(net, decayed) == {"proj.weight", "conv.weight", "rel_pos_bias.weight"}
    assert names_of(net, spared) == {
        "proj.bias",
        "conv.bias",
        "norm.weight",
        "norm.bias",
        "words.weight",
        "queries",
        "null_kv",
        "q_scale",
        "relative_position_bias_table",
    }


def test_release_rule_reads_names():
    net = Net()
    released = {"words.weight": "embedding.weight", "queries": "latent_spatial_tokens"}
    decayed, spared = param_groups(net, 0.1, "release", lambda name: released.get(name, name))
    # The queries and null keys decay, and the matrix with "bias" in its name does not: the release's accidents.
    assert names_of(net, decayed) == {"proj.weight", "conv.weight", "queries", "null_kv"}
    assert names_of(net, spared) == {
        "proj.bias",
        "conv.bias",
        "norm.weight",
        "norm.bias",
        "words.weight",
        "q_scale",
        "relative_position_bias_table",
        "rel_pos_bias.weight",
    }


def test_release_rule_on_the_tokenizer():
    """Parameters by the release's rule, less those without any effect, which exist there and not here."""
    graph = WordGraph(("red", "old"), ("car",), torch.zeros(3, 512), torch.zeros(2, 0, dtype=torch.int64))
    with torch.device("meta"):
        model = SweetTok(TokenizerConfig(), Prior(graph, graph))
    decayed, spared = param_groups(model, 0.1, "release", TOKENIZER.released_name)
    by_type = names_of(model, param_groups(model, 0.1)[0])
    queries = {"encoder.spatial_queries", "encoder.temporal_queries"}
    null_keys = {name for name, _ in model.named_parameters() if name.endswith("null_kv")}
    assert null_keys and names_of(model, decayed) == by_type | queries | null_keys

    # Stage 2 of the release trains 119.74 M decayed and 2.34 M undecayed parameters. Without effect are the queries
    # and keys of 4 single-token attentions, 4 networks of unused position biases, and gains and scales.
    model.requires_grad_(False)
    model.decoder.requires_grad_(True)
    model.pixel_decoder.requires_grad_(True)
    decayed, spared = param_groups(model, 0.1, "release", TOKENIZER.released_name)
    attention = 4 * 2 * 512 * 512
    bias_network = 4 * (512 * 2 + 512 + 512 * 512 + 512 + 8 * 512 + 8)
    gains = (4 + 6) * 512 + 4 * 2 * 64
    assert sum(param.numel() for param in decayed["params"]) == pytest.approx(119.74e6 - attention, abs=5e3)
    assert sum(param.numel() for param in spared["params"]) == pytest.approx(2.34e6 - bias_network - gains, abs=5e3)


@pytest.mark.parametrize("rule", ["by_type", "release"])
def test_every_trainable_parameter_is_in_one_group(rule):
    net = Net()
    net.tied = nn.Linear(2, 2, bias=False)
    net.tied.weight = net.proj.weight
    ids = [id(param) for group in param_groups(net, 0.1, rule) for param in group["params"]]
    assert sorted(ids) == sorted(id(param) for param in net.parameters() if param.requires_grad)


def test_nothing_to_train_and_unknown_rules_are_named():
    with pytest.raises(ValueError, match="Linear has no trainable parameters"):
        param_groups(nn.Linear(2, 2).requires_grad_(False), 0.1)


def test_optimizer_takes_everything_from_its_configuration():
    config = OptimizerConfig(lr=0.5, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.2, decay_rule="release")
    optimizer = make_optimizer(Net(), config, lambda name: name.replace("words", "embedding"))
    for group, decay, size in zip(optimizer.param_groups, (0.2, 0.0), (4, 8), strict=True):
        assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.5, (0.8, 0.9), 1e-3, decay)
        assert len(group["params"]) == size


def test_first_update_is_adamw():
    """One step of AdamW from zero moments: decay, then a step of lr * g / (|g| + eps)."""
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(2.0), layer.bias.fill_(2.0)
    layer.weight.grad, layer.bias.grad = torch.full((1, 1), 0.5), torch.full((1,), 0.5)
    make_optimizer(layer, OptimizerConfig(lr=0.1, eps=0.5, weight_decay=0.3)).step()
    step = 0.1 * 0.5 / (0.5 + 0.5)
    assert layer.weight.item() == pytest.approx(2.0 * (1 - 0.1 * 0.3) - step)
    assert layer.bias.item() == pytest.approx(2.0 - step)


def test_factor_warms_up_then_falls_and_stays():
    factors = [lr_factor(k, warmup=2, total=6, base=1.0, end=0.2) for k in range(10)]
    assert factors[:3] == [0.0, 0.5, 1.0] and factors[4] == pytest.approx(0.6)
    assert factors[6:] == pytest.approx([0.2] * 4)
    assert lr_factor(0, warmup=0, total=6, base=1.0, end=0.2) == 1.0


def test_scheduler_counts_updates_and_survives_a_reload():
    config = OptimizerConfig(lr=0.1, end_lr=0.01, warmup_steps=2)
    layer = nn.Linear(1, 1)
    layer.weight.grad = torch.zeros(1, 1)

    def fresh():
        optimizer = make_optimizer(layer, config)
        return optimizer, make_scheduler(optimizer, config, max_steps=10, start_step=4)

    optimizer, scheduler = fresh()
    rates = []
    for update in range(8):
        if update == 3:
            states = optimizer.state_dict(), scheduler.state_dict()
            optimizer, scheduler = fresh()
            optimizer.load_state_dict(states[0])
            scheduler.load_state_dict(states[1])
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx(
        [0.0, 0.05, 0.1, 0.1 * lr_factor(3, 2, 6, 0.1, 0.01), 0.055, 0.1 * lr_factor(5, 2, 6, 0.1, 0.01), 0.01, 0.01]
    )


@pytest.mark.parametrize(
    ("key", "config", "max_steps", "start"),
    [
        ("stage1_ucf", OptimizerConfig(lr=5e-5), 150_000, 0),
        ("stage1_k600", OptimizerConfig(warmup_steps=2500), 250_000, 0),
        ("stage2_gen_ucf", OptimizerConfig(warmup_steps=10_000), 50_000, 0),
        ("stage2_gen_k600", OptimizerConfig(warmup_steps=10_000), 200_000, 0),
        ("stage2_disc_ucf_1proc", OptimizerConfig(warmup_steps=10_000), 50_000, 20_000),
    ],
)
def test_golden_learning_rates(golden_folder, key, config, max_steps, start):
    recorded = golden_json(golden_folder)["lr"]
    (expected,) = [values for name, values in recorded.items() if re.match(rf"{key}\(", name)]
    scheduler = make_scheduler(make_optimizer(nn.Linear(1, 1), config), config, max_steps, start)
    factor = scheduler.lr_lambdas[0]
    for step, value in expected.items():
        assert config.lr * factor(int(step) - start) == pytest.approx(value, rel=1e-9, abs=1e-15), step
    assert config.lr * factor(max_steps - start + 10_000) == pytest.approx(config.end_lr)


def test_muon_orthogonalises_hidden_matrices_only():
    net = nn.Module()
    net.embed, net.layers = nn.Linear(4, 6), nn.ModuleList([nn.Linear(6, 3)])
    before = {name: param.clone() for name, param in net.named_parameters()}
    for param in net.parameters():
        param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(param.numel()))
    gradient = net.embed.weight.grad.clone()
    optimizer = make_optimizer(net, OptimizerConfig(kind="muon", lr=0.1, weight_decay=0.0))
    optimizer.step()
    update = (before["layers.0.weight"] - net.layers[0].weight) / (0.1 * 0.2 * 6**0.5)
    assert ((torch.linalg.svdvals(update) > 0.6) & (torch.linalg.svdvals(update) < 1.3)).all()
    torch.testing.assert_close(before["embed.weight"] - net.embed.weight, 0.1 * gradient.sign(), rtol=1e-3, atol=1e-4)
    assert set(optimizer.state[net.layers[0].weight]) == {"momentum", "step"}
    everywhere = make_optimizer(net, OptimizerConfig(kind="muon_all"))
    orthogonal = {name for group in everywhere.param_groups if group["orthogonal"] for name in map(id, group["params"])}
    assert orthogonal == {id(net.embed.weight), id(net.layers[0].weight)}


@pytest.mark.parametrize("stack", [1, 30, 1 << 21])
def test_muon_updates_matrices_of_one_shape_together_as_each_alone(monkeypatch, stack):
    monkeypatch.setattr(muon, "STACK", stack)
    torch.manual_seed(0)
    layers = [nn.Linear(*sizes, bias=False) for sizes in ((3, 4), (3, 4), (4, 3), (3, 4), (3, 4))]
    layers[-1].double()
    nets = [nn.ModuleList(layers), *(nn.ModuleList([copy.deepcopy(layer)]) for layer in layers)]
    optimizers = [make_optimizer(net, OptimizerConfig(kind="muon", lr=0.1)) for net in nets]
    for _ in range(2):
        for layer, alone in zip(layers, nets[1:], strict=True):
            layer.weight.grad = torch.randn_like(layer.weight)
            alone[0].weight.grad = layer.weight.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        for layer, alone in zip(layers, nets[1:], strict=True):
            torch.testing.assert_close(layer.weight, alone[0].weight, rtol=1e-4, atol=1e-5)
    assert optimizers[0].state[layers[-1].weight]["momentum"].dtype == torch.float64


def test_muon_decays_and_skips_steps_that_are_not_finite():
    net = nn.ModuleList([nn.Linear(3, 3, bias=False)])
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(3))
    optimizer = make_optimizer(net, OptimizerConfig(kind="muon", lr=0.1, weight_decay=0.5))
    net[0].weight.grad = torch.zeros(3, 3)
    optimizer.step()
    torch.testing.assert_close(net[0].weight.detach(), 0.95 * torch.eye(3))
    net[0].weight.grad, optimizer.found_inf = torch.full((3, 3), torch.nan), torch.ones(())
    optimizer.step()
    torch.testing.assert_close(net[0].weight.detach(), 0.95 * torch.eye(3))
    assert not optimizer.state[net[0].weight]["momentum"].any()
