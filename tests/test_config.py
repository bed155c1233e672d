"""Strict, typed configuration: unknown keys, wrong types and sizes that do not fit are errors that say what would."""

import dataclasses
import math
from pathlib import Path

import pytest
import tiny
import yaml
from omegaconf import OmegaConf

from sweettok.cli.main import main
from sweettok.config import build, to_dict
from sweettok.data.config import DataConfig, TokenDataConfig
from sweettok.losses.config import AdversarialConfig, PerceptualConfig
from sweettok.proxy.config import BlockConfig, ProxyConfig
from sweettok.stages import STAGES, load_config
from sweettok.stages.proxy import ProxyRun
from sweettok.stages.reference import reference
from sweettok.stages.stage1 import Stage1Run
from sweettok.tokenizer.config import TokenizerConfig
from sweettok.train.config import OptimizerConfig, TrainConfig

INTERVALS = ("log", "sample", "save", "eval")
ROOT = Path(__file__).resolve().parent.parent
STAGE1 = {
    "stage": "stage1",
    "proxy": "proxy.bin",
    "prior": "priors",
    "data": {"train": "list.txt"},
    "train": {"output_dir": "out", "max_steps": 10, "global_batch_size": 4},
}


def write(tmp_path, content):
    path = tmp_path / "run.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return path


def test_an_unquoted_no_is_no_mixed_precision(tmp_path):
    """YAML reads it as false."""
    path = write(tmp_path, STAGE1)
    assert load_config(path, ["train.mixed_precision=no"]).train.mixed_precision == "no"
    with pytest.raises(ValueError, match="no, fp16, bf16; got 'off'"):
        load_config(path, ["train.mixed_precision='off'"])


# --------------------------------------------------------------------------------------------------------- defaults


def test_defaults_are_the_release():
    config = TokenizerConfig()
    assert (config.num_frames, config.height, config.width) == (17, 256, 256)
    assert config.grid == (5, 32, 32)
    assert (config.num_spatial_queries, config.num_temporal_queries) == (256, 1024)
    assert (config.block.dim, config.block.num_heads, config.block.head_dim, config.block.ff_dim) == (512, 8, 64, 1365)
    assert (config.encoder_spatial, config.encoder_temporal) == ("ttwwtttt", "tttt")
    assert (config.decoder_spatial, config.decoder_temporal) == ("tttttttt", "tttt")
    assert (config.codebook_dim, config.graph_hidden, config.graph_dropout) == (256, 256, 0.5)
    assert (config.modifiers_per_query, config.num_null_kv, config.head_hidden) == (2, 2, 1024)
    assert (config.spatial_source, config.temporal_source) == ("all_slices", "differences")
    assert config.block.temporal_peg == config.proxy.block.temporal_peg == "scrambled"
    proxy = config.proxy
    assert (proxy.num_codes, proxy.code_dim, proxy.patch_size, proxy.temporal_patch_size) == (8192, 8, 8, 4)
    patterns = proxy.encoder_spatial, proxy.encoder_temporal, proxy.decoder_temporal, proxy.decoder_spatial
    assert patterns == ("ttww", "tttt", "tttt", "tttt")


def test_everything_is_frozen_and_hashable():
    for cls in (TokenizerConfig, ProxyConfig, BlockConfig, OptimizerConfig):
        config = cls()
        hash(config)
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, dataclasses.fields(config)[0].name, 1)


def test_grids():
    proxy = tiny.proxy_config()
    assert proxy.grid(9, 16, 16) == (3, 4, 4) and proxy.grid(1, 16, 24) == (1, 4, 6)
    config = tiny.tokenizer_config(tiny.proxy_config(16, 24), spatial_query_grid=(2, 4))
    assert config.grid == (3, 4, 6)
    assert (config.num_spatial_queries, config.num_temporal_queries) == (8, 24)


# --------------------------------------------------------------------------------------------------- sizes that fit


@pytest.mark.parametrize("num_frames", [1, 5, 9, 17, 25])
def test_frames_that_fit(num_frames):
    ProxyConfig().check_clip(num_frames, 256, 256)


@pytest.mark.parametrize(("num_frames", "nearest"), [(16, "13 or 17"), (18, "17 or 21"), (2, "1 or 5"), (0, "1 or 5")])
def test_frames_that_do_not(num_frames, nearest):
    with pytest.raises(ValueError, match=rf"{num_frames} frames do not fit: .*\({nearest}\)"):
        ProxyConfig().check_clip(num_frames, 256, 256)


@pytest.mark.parametrize(
    ("height", "width", "message"),
    [
        (250, 256, r"height 250 does not fit: a multiple of 64 is needed \(192 or 256\)"),
        (256, 100, r"width 100 does not fit: a multiple of 64 is needed \(64 or 128\)"),
        (0, 256, r"height 0 does not fit: a multiple of 64 is needed \(64 or 128\)"),
    ],
)
def test_sizes_that_do_not_fit(height, width, message):
    with pytest.raises(ValueError, match=message):
        ProxyConfig().check_clip(17, height, width)
    with pytest.raises(ValueError, match=message):
        ProxyConfig(height=height, width=width)


def test_without_windows_only_patches_must_fit():
    proxy = ProxyConfig(encoder_spatial="tt", height=136, width=8)
    with pytest.raises(ValueError, match=r"height 132 does not fit: a multiple of 8 is needed \(128 or 136\)"):
        proxy.check_clip(17, 132, 8)


def test_tokenizers_are_for_one_size_and_for_clips():
    config = TokenizerConfig()
    config.check_clip(5, 256, 256)
    with pytest.raises(ValueError, match="frames are 128x256, but this tokenizer's .* are for 256x256"):
        config.check_clip(17, 128, 256)
    with pytest.raises(ValueError, match="one frame has no motion to tokenize: at least 5 frames are needed"):
        config.check_clip(1, 256, 256)
    with pytest.raises(ValueError, match="one frame has no motion"):
        tiny.tokenizer_config(tiny.proxy_config(num_frames=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spatial_query_grid": (3, 2)}, "tokenizer.spatial_query_grid 3x2 does not divide into windows of 2x2"),
        ({"decoder_spatial": "ttw"}, r"decoder_spatial has 3 layers, which the\s+2 layers of decoder_temporal do not"),
        ({"modifiers_per_query": 0}, "modifiers_per_query must be above 0; got 0"),
        ({"encoder_spatial": ""}, "tokenizer.encoder_spatial must be a non-empty string"),
        ({"encoder_spatial": "tww"}, "tokenizer.encoder_spatial must end in t.*got 'tww'"),
        ({"decoder_spatial": "ttww"}, "tokenizer.decoder_spatial must end in t.*got 'ttww'"),
        ({"encoder_spatial": "txt"}, r"over \['t', 'w'\] \(one letter a layer\); got 'txt'"),
        ({"encoder_temporal": "tw"}, r"tokenizer.encoder_temporal must be .* over \['t'\]"),
        ({"spatial_source": "last_frame"}, "spatial_source must be one of all_slices, first_frame; got 'last_frame'"),
        (
            {"temporal_source": "x"},
            "temporal_source must be one of differences, first_frame_residuals, tube_differences; got 'x'",
        ),
        ({"pixel_path": "mean"}, "pixel_path must be one of expected, argmax, none; got 'mean'"),
    ],
)
def test_tokenizers_that_do_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny.tokenizer_config(**changes)


def test_windows_of_the_tokenizer_must_fit_its_grid():
    proxy = tiny.proxy_config(height=12, encoder_spatial="tt")
    with pytest.raises(ValueError, match="latent grid 3x4 does not divide into windows of 2x2"):
        tiny.tokenizer_config(proxy)
    tiny.tokenizer_config(proxy, encoder_spatial="ttt")
    with pytest.raises(ValueError, match="latent grid 3x4 does not divide"):
        tiny.tokenizer_config(proxy, encoder_spatial="ttt", decoder_spatial="wt")


@pytest.mark.parametrize(
    ("cls", "changes", "message"),
    [
        (BlockConfig, {"head_dim": 6}, "head_dim must divide by 4 for 2-D rotary positions; got 6"),
        (BlockConfig, {"temporal_peg": "true"}, "temporal_peg must be one of scrambled, grid; got 'true'"),
        (
            PerceptualConfig,
            {"kind": "vgg"},
            "perceptual.kind must be one of convnext, lpips, efficientnet, none; got 'vgg'",
        ),
        (BlockConfig, {"num_heads": 0}, "block.num_heads must be above 0; got 0"),
        (OptimizerConfig, {"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\); got \[0.9, 1.0\]"),
        (TrainConfig, {"global_batch_size": 0}, "train.global_batch_size must be above 0; got 0"),
        (TrainConfig, {"micro_batch_size": 0}, "train.micro_batch_size must be above 0; got 0"),
        (TrainConfig, {"max_steps": -1}, "train.max_steps must be above 0; got -1"),
        (TrainConfig, {"num_samples": -1}, "train.num_samples must be a whole number from 0 to 2147483647; got -1"),
        *[(TrainConfig, {f"{name}_every": -1}, f"train.{name}_every .* got -1") for name in INTERVALS],
        (TrainConfig, {"keep_checkpoints": 0}, "train.keep_checkpoints must be above 0; got 0"),
        (TrainConfig, {"seed": -5}, "train.seed must be a whole number from 0 to 4294967295; got -5"),
        (TrainConfig, {"seed": 2**32}, "train.seed must be .* got 4294967296"),
        (TrainConfig, {"step_timeout": math.nan}, "train.step_timeout must be at least 0; got nan"),
        (DataConfig, {"num_workers": -1}, "data.num_workers must be a whole number from 0"),
        (DataConfig, {"stride": 10**20}, "data.stride must be a whole number from 1 to 2147483647"),
        (TokenDataConfig, {"num_workers": -1}, "data.num_workers must be a whole number from 0"),
        (OptimizerConfig, {"decay_rule": "all"}, "decay_rule must be one of by_type, release; got 'all'"),
    ],
)
def test_choices(cls, changes, message):
    with pytest.raises(ValueError, match=message):
        cls(**changes)


# ---------------------------------------------------------------------------------------------------------- reading


def test_a_file_holds_only_what_differs(tmp_path):
    config = load_config(write(tmp_path, STAGE1))
    assert isinstance(config, Stage1Run)
    assert config.tokenizer == TokenizerConfig() and config.optimizer == OptimizerConfig()
    assert config.train == TrainConfig(output_dir="out", max_steps=10, global_batch_size=4)


def test_overrides(tmp_path):
    overrides = [
        "train.max_steps=20",
        "tokenizer.proxy.num_frames=9",
        "tokenizer.spatial_query_grid=[8,8]",
        "data.root=null",
        "optimizer.betas=[0.5,0.9]",
        "train.trackers=[tensorboard]",
        "tokenizer.words.nouns=7",
        "optimizer.lr=1e-3",
    ]
    config = load_config(write(tmp_path, STAGE1), overrides)
    assert config.train.max_steps == 20 and config.train.trackers == ("tensorboard",)
    assert config.tokenizer.proxy.num_frames == 9 and config.tokenizer.spatial_query_grid == (8, 8)
    assert config.optimizer.betas == (0.5, 0.9) and config.optimizer.lr == 1e-3
    assert config.tokenizer.words.nouns == 7 and config.data.root is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_step=1", "max_step"),
        ("tokeniser.block.dim=1", "tokeniser"),
        ("tokenizer.proxy.block.dims=8", "dims"),
        ("train.max_steps=many", "(?s)train.max_steps.*many"),
        ("train.max_steps=1.5", "train.max_steps"),
        ("train.resume=perhaps", "train.resume"),
        ("tokenizer.pixel_path=mean", "pixel_path must be one of"),
        ("tokenizer.proxy.num_frames=16", r"16 frames do not fit: .*\(13 or 17\)"),
        ("train.trackers=[mlflow]", "train.trackers must be one of wandb, tensorboard; got 'mlflow'"),
        ("train.mixed_precision=fp8", "mixed_precision must be one of no, fp16, bf16"),
        ("data.resize=zoom", "data.resize must be one of stretch, crop, pad"),
        ("data.short=loop", "data.short must be one of black, repeat, error"),
        ("train.max_steps", "override 'train.max_steps' is not of the form key.path=value"),
    ],
)
def test_wrong_overrides(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, STAGE1), [override])


def test_missing_values_are_named(tmp_path):
    path = write(tmp_path, {"stage": "stage1", "prior": "priors", "train": {"max_steps": 3, "global_batch_size": 1}})
    with pytest.raises(ValueError, match=r"run.yaml: no value for data.train, proxy, train.output_dir: set it in"):
        load_config(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**STAGE1, "stage": "stage3"}, "`stage` must be one of .*stage1.*; got 'stage3'"),
        ({"data": {}}, "`stage` must be one of .*; got None"),
        ("", "`stage` must be one of .*; got None"),
        ({**STAGE1, "learning_rate": 1.0}, "learning_rate"),
        ({**STAGE1, "train": {**STAGE1["train"], "devices": 8}}, "devices"),
        ({**STAGE1, "train": 3}, "int is not a subclass of TrainConfig"),
    ],
)
def test_wrong_files(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, content))


def test_a_file_inherits_from_its_base(tmp_path):
    """By paths relative to each file, over several levels; of several bases the later one wins, lists are replaced."""
    (tmp_path / "deep").mkdir()
    first = {**STAGE1, "optimizer": {"lr": 1.0, "betas": [0.1, 0.2], "eps": 0.5}}
    for name, content in {
        "deep/first": first,
        "second": {"base": "deep/first.yaml", "optimizer": {"lr": 2.0}},
        "third": {"optimizer": {"betas": [0.3, 0.4]}, "train": {"max_steps": 11}},
        "deep/run": {"base": ["../second.yaml", "../third.yaml"], "train": {"max_steps": 12}},
    }.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    run = load_config(tmp_path / "deep" / "run.yaml", ["train.seed=3"])
    optimizer = run.optimizer
    assert (optimizer.lr, optimizer.betas, optimizer.eps) == (2.0, (0.3, 0.4), 0.5)
    assert (run.train.max_steps, run.train.seed, run.proxy) == (12, 3, "proxy.bin")


def test_bases_that_are_missing_or_lead_in_a_circle(tmp_path):
    for name, base in {"a": "b.yaml", "b": ["c.yaml"], "c": "a.yaml", "d": "nowhere.yaml"}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"base": base}), encoding="utf-8")
    with pytest.raises(ValueError, match="leads back to the file itself: a.yaml -> b.yaml -> c.yaml -> a.yaml"):
        load_config(tmp_path / "a.yaml")
    with pytest.raises(FileNotFoundError, match="no configuration file at .*nowhere.yaml, which .*d.yaml names"):
        load_config(tmp_path / "d.yaml")


def test_stage_1_takes_the_sizes_of_its_proxy(tmp_path):
    """From the folder, from a run that will write it, or the release's for a published file; never against them."""
    tiny.proxy().save_pretrained(tmp_path / "proxy")
    settings = {**STAGE1, "proxy": str(tmp_path / "proxy"), "tokenizer": {"encoder_spatial": "ttt"}}
    config = tiny.proxy().config
    grid = "tokenizer.spatial_query_grid=[2,2]", "tokenizer.block.window_size=2"
    assert load_config(write(tmp_path, settings), grid).tokenizer.proxy == config
    agreeing = [*grid, f"tokenizer.proxy.num_codes={config.num_codes}"]
    assert load_config(write(tmp_path, settings), agreeing).tokenizer.proxy == config
    with pytest.raises(
        ValueError, match="tokenizer.proxy.num_codes is 16, but the proxy at .* has 32: leave the setting"
    ):
        load_config(write(tmp_path, settings), ["tokenizer.proxy.num_codes=16"])

    published = tmp_path / "proxy.bin"
    published.touch()
    assert load_config(write(tmp_path, {**STAGE1, "proxy": str(published)})).tokenizer.proxy == ProxyConfig()
    with pytest.raises(ValueError, match="tokenizer.proxy.num_frames is 9, but"):
        load_config(write(tmp_path, {**STAGE1, "proxy": str(published)}), ["tokenizer.proxy.num_frames=9"])

    earlier = [load_config("configs/tiny/proxy.yaml")]
    assert load_config("configs/tiny/stage1.yaml", earlier=earlier).tokenizer.proxy == earlier[0].proxy


def test_shipped_files_are_found_from_any_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["config", "configs/stage1/k600.yaml", "train.seed=7"]) == 0
    shown = capsys.readouterr().out
    path = write(tmp_path, shown)
    assert load_config(path) == load_config("configs/stage1/k600.yaml", ["train.seed=7"])
    assert yaml.safe_load(shown)["optimizer"]["eps"] == OptimizerConfig.eps, "a default"
    assert main(["config"]) == 2 and "give a configuration file" in capsys.readouterr().err


def test_every_setting_is_described():
    """docs/settings.md is up to date; if not: sweettok config --reference > docs/settings.md"""
    page = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == reference()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 120 and not [row for row in rows if row.endswith("|  |")]


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="no configuration file at .*nowhere.yaml"):
        load_config(tmp_path / "nowhere.yaml")


def test_plain_dictionaries_round_trip():
    for config in (tiny.tokenizer_config(), tiny.proxy_config(), TokenizerConfig(), ProxyConfig()):
        plain = to_dict(config)
        assert yaml.safe_load(yaml.safe_dump(plain)) == plain, "not plain data"
        assert build(type(config), plain) == config
    run = build(Stage1Run, STAGE1)
    assert build(Stage1Run, OmegaConf.create(to_dict(run))) == run


def test_stages_name_themselves():
    for name, task in STAGES.items():
        assert next(f.default for f in dataclasses.fields(task.run_class) if f.name == "stage") == name


def test_every_stage_s_own_defaults():
    required = {"data": {"train": "l"}, "train": {"output_dir": "o", "max_steps": 1, "global_batch_size": 1}}
    run = build(ProxyRun, required)
    assert run.loss.perceptual == PerceptualConfig(kind="lpips", weight=4.0)
    assert run.loss.adversarial == AdversarialConfig(feature_matching_weight=4.0, start_step=0)
    stage1 = build(Stage1Run, {**required, "proxy": "p", "prior": "q"}).loss
    assert (stage1.encoder_side_weight, stage1.codebook_side_weight) == (1.0, 0.25)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("base: 3\n", "`base` must be a path or a list of paths; got 3"),
        ("base:\n", "`base` must be a path .* got None"),
        ("base: [3]\n", "`base` must be a path"),
        ("base: {a: b}\n", "`base` must be a path"),
        ("- a\n", "not a YAML file of settings"),
        ("stage: [a]\n", "`stage` must be one of"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, content))


@pytest.mark.parametrize(
    "override", ["optimizer.lr=nan", "train.ema_decay=1", "train.eval_clips=0", "data.stride=0", "data.stride=-1"]
)
def test_numbers_out_of_range_are_found_when_the_file_is_read(tmp_path, override):
    name = override.partition("=")[0]
    with pytest.raises(ValueError, match=f"{name} must be"):
        load_config(write(tmp_path, STAGE1), [override])
