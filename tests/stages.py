"""Every stage trained at a size that takes a second; `runs` in conftest.py is the folder of the results."""

import json
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from omegaconf import OmegaConf
from torch.utils.data import default_collate

from sweettok.cli.main import main as command
from sweettok.data.scene_files import write_scenes
from sweettok.data.synthetic_files import write_synthetic
from sweettok.priors import save_prior
from sweettok.priors.build import build_prior
from sweettok.stages import STAGES as TASKS
from sweettok.stages import build_task as build_task
from sweettok.stages import load_config
from sweettok.train import loop
from sweettok.train.session import make_accelerator, start

ROOT = Path(__file__).resolve().parent.parent
STAGES = tuple(TASKS)
STEPS = 3
BLOCK = {"dim": 16, "num_heads": 2, "head_dim": 8, "window_size": 2, "temporal_peg": "grid"}
PROXY = {
    "num_frames": 5,
    "height": 32,
    "width": 32,
    "temporal_patch_size": 2,
    "block": BLOCK,
    "encoder_spatial": "tw",
    "encoder_temporal": "t",
    "decoder_temporal": "t",
    "decoder_spatial": "t",
    "num_codes": 16,
    "code_dim": 4,
}
# Dropout in the word graph, because processes must agree on it.
TOKENIZER = {
    "proxy": PROXY,
    "block": BLOCK,
    "encoder_spatial": "wt",
    "encoder_temporal": "t",
    "decoder_spatial": "t",
    "decoder_temporal": "t",
    "spatial_query_grid": [2, 2],
    "head_hidden": 16,
    "codebook_dim": 4,
    "graph_hidden": 8,
    "graph_dropout": 0.5,
}
ADVERSARIAL = {"perceptual": {"kind": "none"}, "adversarial": {"start_step": 0}}
GENERATOR = {"dim": 16, "num_layers": 2, "num_heads": 2}
DISCRIMINATOR = {"base_channels": 4, "num_layers": 2}
# Of VTok, which has no published stages: 9 frames of scenes, 4 + 2 tokens.
VTOK = {
    "pretrained": None,
    "architecture": {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 16, "layers": 6, "head_width": 8},
    },
    "grid": [2, 2],
    "projection": "identity",
}
TEXT = {"width": 16, "layers": 4, "heads": 2, "vocab_size": 300, "context_length": 24}
LANGUAGE = {
    "scratch": {"dim": 16, "num_layers": 6, "num_heads": 2, "vocab_size": 260, "max_length": 64},
    "standardise_inputs": True,
    "motion_mlp": True,
    "caption_dropout": 0.5,
}
DECODER = {"kind": "pixels", "adapter_rms": 1.0, "height": 32, "width": 32}
TRAIN = {
    "max_steps": STEPS,
    "global_batch_size": 4,
    "log_every": 1,
    "save_every": 1,
    "sample_every": STEPS,
    "eval_every": STEPS,
    "num_samples": 1,
}


def prepare(folder: Path) -> None:
    """Clips, prior, and a configuration file of each stage, which follow one another."""
    clips = write_synthetic(folder / "clips", num_train=8, num_val=2, frames=6, size=32)
    captions = (clips / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    save_prior(build_prior((json.loads(line)["words"] for line in captions), dim=4), folder / "prior")
    data = {"train": str(clips / "train.txt"), "validation": str(clips / "val.txt"), "num_workers": 0}
    game = {"loss": ADVERSARIAL, "discriminator": DISCRIMINATOR}
    scenes = write_scenes(folder / "scenes", num_train=8, num_val=3, frames=9, size=32)
    annotated = {"train": str(scenes / "train.txt"), "validation": str(scenes / "val.txt"), "num_workers": 0}
    stages = {
        "proxy": {"proxy": PROXY, **game},
        "spatial": {
            "proxy": str(folder / "proxy" / "final"),
            "prior": str(folder / "prior"),
            "warm_start": True,
            "tokenizer": TOKENIZER,
        },
        "stage1": {
            "proxy": str(folder / "proxy" / "final"),
            "prior": str(folder / "prior"),
            "warm_start": True,
            "tokenizer": TOKENIZER,
            "loss": {"auxiliary_weight": 2.0},
        },
        "stage2": {"tokenizer": str(folder / "stage1" / "final"), **game},
        "generator": {
            "tokenizer": str(folder / "stage2" / "final"),
            "generator": {**GENERATOR, "class_dropout": 0.5},
            "data": {"train": str(folder / "tokens"), "validation": str(folder / "tokens"), "num_workers": 0},
        },
        "vtok_encoder": {
            "vtok": VTOK,
            "text": TEXT,
            "num_frames": 9,
            "frames_per_clip": 3,
            "loss": {"group": 1},
            "data": annotated,
        },
        "vtok_decoder": {
            "tokenizer": str(folder / "vtok_encoder" / "final"),
            "decoder": {"dim": 16, "num_layers": 6, "num_heads": 2},
            "num_frames": 9,
            "data": {**annotated, "features": str(folder / "features"), "keep": True},
            "sample_steps": 2,
        },
        "vtok": {
            "tokenizer": str(folder / "vtok_encoder" / "final"),
            "num_frames": 9,
            "language": LANGUAGE,
            "decoder": {**DECODER, "path": str(folder / "vtok_decoder" / "final")},
            "data": told(scenes, folder / "told") | {"features": str(folder / "features"), "keep": True},
        },
    }
    for name, settings in stages.items():
        train = {"output_dir": str(folder / name), **TRAIN}
        config = {"stage": name, "data": data, **settings, "optimizer": {"lr": 1e-3}, "train": train}
        OmegaConf.save(OmegaConf.create(config), folder / f"{name}.yaml")


def told(scenes: Path, folder: Path) -> dict:
    """The clips of `scenes` with a question and a caption each, whose lengths are equal, so that all batches are."""
    folder.mkdir()
    (folder / "videos").symlink_to(scenes / "videos")
    lines = {"captions": [], "questions": []}
    for split, count in (("train", 8), ("val", 3)):
        (folder / f"{split}.txt").write_text((scenes / f"{split}.txt").read_text())
        for number in range(count):
            key, what = f"videos/{split}_{number:05d}", ("up", "no")[number % 2]
            asked = {"skill": "motion", "question": "up or no?", "options": ["up", "no"], "answer": what}
            lines["captions"].append({"key": key, "text": f"a dot {what}"})
            lines["questions"].append({"key": key, **asked})
    for name, rows in lines.items():
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return {"train": str(folder / "train.txt"), "validation": str(folder / "val.txt"), "num_workers": 0}


def train_all(folder: Path) -> Path:
    """Train every stage by the script; returns the folder."""
    prepare(folder)
    for name in STAGES:
        if name == "generator":
            tokenize(folder, folder / "tokens")
        AcceleratorState._reset_state(reset_partial_state=True)
        assert command(["train", str(folder / f"{name}.yaml")]) == 0
    return folder


def tokenize(work: Path, out: Path, *options: str) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)
    tokenizer, clips = work / "stage1" / "final", work / "clips" / "train.txt"
    arguments = ["tokenize", "--checkpoint", tokenizer, "--data", clips, "--out", out, "--workers", "0", *options]
    assert command([str(part) for part in arguments]) == 0


def config_of(folder: Path, stage: str, *overrides: str):
    return load_config(folder / f"{stage}.yaml", overrides)


def make_task(kind, run):
    set_seed(run.train.seed)
    return kind(run)


def begin(task, run):
    session = start(task, run, make_accelerator(run.train))
    return session, iter(loop.make_loader(task.train_dataset, session.state.sampler, 0))


def first_batch(task, count: int = 4) -> dict:
    collate = getattr(task.train_dataset, "collate", default_collate)
    return collate([task.train_dataset[index] for index in range(count)])


def log_lines(folder: Path, kind: str = "train/") -> list[dict]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if any(key.startswith(kind) for key in line)]


def snapshot(module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}
