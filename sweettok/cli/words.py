"""`sweettok words`: show and evaluate the words of video tokens."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sweettok
from sweettok.cli import options
from sweettok.cli.main import Command
from sweettok.cli.options import given, integer, real
from sweettok.data import episodes
from sweettok.data.episodes import Episode, EpisodeConfig
from sweettok.data.lists import load_clips
from sweettok.data.tokens import TokenDataset
from sweettok.data.writer import write_png, write_video
from sweettok.distributed import join_processes
from sweettok.pixels import to_uint8
from sweettok.store import check_output, check_output_folder, write_aside
from sweettok.tokenizer.layout import KINDS
from sweettok.tokenizer.model import SweetTok
from sweettok.tokenizer.output import TokenOutput
from sweettok.words import fewshot, prompts
from sweettok.words.answers import AnswerCache
from sweettok.words.endpoint import Endpoint
from sweettok.words.models import LanguageModel, LocalModel
from sweettok.words.overlay import LARGEST, LINE, overlay
from sweettok.words.prompts import PromptConfig
from sweettok.words.summary import as_json, as_text

# Options of each kind of language model.
BACKENDS = {
    "none": (),
    "local": ("model", "answers", "precision"),
    "endpoint": ("model", "answers", "base_url", "timeout", "retries", "concurrency", "key_name", "body"),
}


def open_tokens(folder: str, tokenizer: SweetTok) -> TokenDataset:
    """Token shards; ValueError unless they are from this tokenizer."""
    tokens = TokenDataset(folder)
    tokens.check_tokenizer(tokenizer.ids_hash())
    return tokens


def add_clips(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="video or image files to encode; or give --tokens")
    options.add_checkpoint(parser)
    parser.add_argument("--tokens", metavar="SHARDS", help="folder of token shards of this tokenizer")
    parser.add_argument("--rows", type=int, nargs="+", default=[0], metavar="N", help="rows of shards (default: 0)")
    options.add_preprocessing(parser)


def open_clips(args: argparse.Namespace) -> dict[str, Callable[[], tuple[TokenOutput, Tensor | None]]]:
    """{name for output files: function that returns the ids of a clip and its uint8 pixels (3, T, H, W)}."""
    if bool(args.videos) == (args.tokens is not None):
        raise ValueError("give videos or --tokens SHARDS, one of them")
    tokenizer = SweetTok.from_pretrained(args.checkpoint).to(join_processes().device)
    if args.tokens:
        tokens = open_tokens(args.tokens, tokenizer)
        if wrong := [row for row in args.rows if not 0 <= row < len(tokens)]:
            raise ValueError(f"{args.tokens} has rows 0 to {len(tokens) - 1}; got {wrong[0]}")
        items = [tokens[row] for row in args.rows]
        names = (f"{row:05d}_{Path(item['key']).name}" for row, item in zip(args.rows, items, strict=True))
        frames = tokens.manifest.num_frames
        clips = [partial(decode, tokenizer, item["ids"][None], frames, args.decode) for item in items]
    else:
        names, changes = (Path(path).stem for path in args.videos), options.preprocessing_changes(args)
        clips = [partial(encode, tokenizer, path, changes) for path in args.videos]
    named = dict(zip(names, clips, strict=True))
    if len(named) < len(clips):
        raise ValueError("several videos have the same name, which is used for the outputs: process them one by one")
    return named


@torch.no_grad()
def encode(tokenizer: SweetTok, path: str, changes: dict[str, Any]) -> tuple[TokenOutput, Tensor]:
    video = tokenizer.read(path, **changes)
    return tokenizer.encode(video), video[0]


@torch.no_grad()
def decode(tokenizer: SweetTok, ids: Tensor, frames: int, pixels: bool) -> tuple[TokenOutput, Tensor | None]:
    return tokenizer.describe(ids), to_uint8(tokenizer.decode(ids, frames))[0].cpu() if pixels else None


def add_show(parser: argparse.ArgumentParser) -> None:
    add_clips(parser)
    parser.add_argument(
        "--top", type=integer(1), default=5, metavar="N", help="printed words of each kind (default: 5)"
    )
    parser.add_argument("--out", metavar="FILE", help="JSON file for all words with all their positions")
    parser.set_defaults(decode=False)


def show(args: argparse.Namespace) -> None:
    if args.out:
        check_output(args.out, (".json",), [args.checkpoint, args.tokens, *args.videos])
    grids, summaries = {}, {}
    for name, clip in open_clips(args).items():
        output, _ = clip()
        grids, summary = output.grids, output.summary()
        summaries[name] = as_json(summary)
        print(f"{name}\n{as_text(summary, args.top)}", flush=True)
    if args.out:
        write_json(args.out, {"kind": "words", "grids": grids, "clips": summaries})


def add_overlay(parser: argparse.ArgumentParser) -> None:
    add_clips(parser)
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="folder for NAME.mp4, and NAME.png of the middle frame")
    add("--cell", type=integer(LINE, LARGEST), default=56, metavar="PIXELS", help="width of a cell (default: 56)")
    add("--fps", type=real(0.1, 240), default=8, help="frames per second of the videos (default: 8)")
    parser.set_defaults(decode=True)


def draw_overlays(args: argparse.Namespace) -> None:
    inputs, out = [args.checkpoint, args.tokens, *args.videos], Path(args.out)
    check_output_folder(out, inputs)
    clips = open_clips(args)
    for name in clips:
        check_output(out / f"{name}.png", inputs=inputs)
        check_output(out / f"{name}.mp4", inputs=inputs)
    for name, clip in clips.items():
        output, video = clip()
        drawn = overlay(video, output, cell=args.cell)
        write_png(out / f"{name}.png", drawn[:, drawn.shape[1] // 2])
        write_video(out / f"{name}.mp4", drawn, args.fps)
        print(f"{name} -> {out / name}.{{mp4,png}}", flush=True)


def add_sizes(parser: argparse.ArgumentParser) -> None:
    options.add_episodes(parser, EpisodeConfig())
    parser.add_argument(
        "--labels", metavar="FILE", help="other classes: lines 'key TAB class name' for some or all clips"
    )


def add_episodes(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tokens", metavar="SHARDS", help="folder of token shards with labels")
    source.add_argument("--data", metavar="LIST_OR_FOLDER", help="list file, CSV or folder of videos with labels")
    parser.add_argument("--classes", metavar="FILE", help="with a list: class names, one per line")
    parser.add_argument("--out", required=True, metavar="FILE", help="JSON file for the episodes")
    add_sizes(parser)


def draw_episodes(args: argparse.Namespace) -> None:
    config = EpisodeConfig(**given(args, *options.EPISODES))
    check_output(args.out, inputs=[args.tokens, args.data, args.classes, args.labels])
    clips = TokenDataset(args.tokens) if args.tokens else load_clips(args.data, classes=args.classes)
    drawn = draw_from(clips, args, config, args.tokens or args.data)
    episodes.write(args.out, drawn, config)
    print(f"{args.out}: {len(drawn)} episodes, {config.n_way}-way {config.k_shot}-shot")


def draw_from(clips: Any, args: argparse.Namespace, config: EpisodeConfig, source: str) -> tuple[Episode, ...]:
    """Draw episodes from clips, with the classes of --labels or their own."""
    if args.labels is not None:
        return episodes.draw(episodes.read_labels(args.labels, clips.keys), config)
    return episodes.draw(episodes.labelled_clips(clips, source), config)


def add_fewshot(parser: argparse.ArgumentParser) -> None:
    add, default = parser.add_argument, PromptConfig()
    add("--tokens", required=True, metavar="SHARDS", help="folder of token shards with labels and class names")
    options.add_checkpoint(parser, "the tokenizer of these tokens")
    add("--out", required=True, metavar="DIR", help="folder for episodes.json, answers.jsonl and report.json")
    add("--use", metavar="FILE", help="file of episodes to use instead of drawing new ones")
    add_sizes(parser)
    add("--words", type=integer(1), default=5, metavar="N", help="words of each kind in a prompt (default: 5)")
    add("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of words (default: all)")
    add("--no-instruction", action="store_true", help="prompts of examples only")
    add("--repeats", type=integer(0), default=0, metavar="R", help="repeat the examples R more times (default: 0)")
    add("--order", choices=prompts.ORDERS, default=default.order, help=f"order of examples (default: {default.order})")
    group = parser.add_argument_group("language model (default: none, only baselines)")
    add, default = group.add_argument, Endpoint
    add("--backend", choices=tuple(BACKENDS), default="none", help="a Hugging Face model, or an OpenAI-like server")
    add("--model", metavar="DIR|NAME", help="the local model's folder, or the model's name at the endpoint")
    answers = "score class names (default of local), generate text (default of endpoint), or restrict it by a schema"
    add("--answers", choices=("likelihood", "free", "schema"), help=answers)
    add("--precision", choices=("no", "bf16"), help="precision of a local model (default: no, float32)")
    add("--base-url", metavar="URL", help="URL of the endpoint, such as http://localhost:8000/v1")
    add("--key-name", metavar="NAME", help=f"environment variable with the key (default: {default.key_name})")
    add("--timeout", type=real(positive=True), metavar="S", help=f"seconds per attempt (default: {default.timeout})")
    add("--retries", type=integer(0), metavar="N", help=f"attempts after the first (default: {default.retries})")
    add("--concurrency", type=integer(1, 256), metavar="N", help=f"parallel requests (default: {default.concurrency})")
    add("--body", type=json_object, metavar="JSON", help="further fields of each request; null removes one")


def json_object(text: str) -> dict[str, Any]:
    value = json.loads(text) if text.lstrip().startswith("{") else None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r}")
    return value


def evaluate(args: argparse.Namespace) -> None:
    """Classify the queries of all episodes with every method. All inputs are checked before answers are paid for."""
    instruction, seed = not args.no_instruction, args.seed or 0
    shown = PromptConfig(args.words, tuple(args.kinds), instruction, args.repeats, args.order, seed)
    model, out = language_model(args), Path(args.out)
    tokenizer = SweetTok.from_pretrained(args.checkpoint)
    tokens = open_tokens(args.tokens, tokenizer)
    tasks, config = find_episodes(args, tokens)
    check_output_folder(out, [args.checkpoint, args.tokens])
    check_output(out / "report.json", inputs=[args.use, args.labels])
    episodes.write(out / "episodes.json", tasks, config)
    clips, cost = fewshot.ClipWords(tokens, tokenizer.embedding_matrix().words), None
    predictions = fewshot.classify_by_baselines(tasks, clips, tokenizer, shown)
    results = {name: fewshot.score(tasks, of_name) for name, of_name in predictions.items()}
    if model is not None:
        with AnswerCache(out / "answers.jsonl") as cache:
            answers, cost = fewshot.classify_by_model(tasks, clips, model, shown, cache)
        result = fewshot.score(tasks, answers)
        minus = {name: fewshot.difference(result, other) for name, other in results.items()}
        results[fewshot.MODEL] = {**result, "minus": minus}
    about = {"kind": "fewshot", "format": 2, "sweettok": sweettok.__version__, "tokens": args.tokens}
    about |= {"tokenizer_hash": tokens.tokenizer_hash, "episodes_hash": episodes.episodes_hash(tasks)}
    about |= {"episodes": asdict(config), "chance": 1 / config.n_way, "prompt": asdict(shown)}
    report = {**about, "model": model and model.identity, "cost": cost, "results": results}
    write_json(out / "report.json", report, indent=1)
    print(f"{fewshot.as_text(report)}\nreport: {out / 'report.json'}")


def language_model(args: argparse.Namespace) -> LanguageModel | None:
    """The language model of the options. ValueError for options of another backend, or missing ones."""
    kind, allowed = args.backend, BACKENDS[args.backend]
    chosen = given(args, *BACKENDS["local"], *BACKENDS["endpoint"])
    for name in chosen:
        if name not in allowed:
            raise ValueError(f"--{name.replace('_', '-')} cannot be used with --backend {kind}")
    for name in ("model", "base_url"):
        if name in allowed and name not in chosen:
            raise ValueError(f"--backend {kind} needs --{name.replace('_', '-')}")
    if kind == "local":
        return LocalModel(chosen.pop("model"), device=join_processes().device, **chosen)
    return Endpoint(**chosen) if kind == "endpoint" else None


def find_episodes(args: argparse.Namespace, tokens: TokenDataset) -> tuple[tuple[Episode, ...], EpisodeConfig]:
    if args.use is None:
        config = EpisodeConfig(**given(args, *options.EPISODES))
        return draw_from(tokens, args, config, args.tokens), config
    # --seed is allowed: the order of examples may depend on it.
    if wrong := given(args, *options.EPISODES[:-1], "labels"):
        names = ", ".join(f"--{name.replace('_', '-')}" for name in wrong)
        raise ValueError(f"--use cannot be combined with {names}")
    tasks, config = episodes.read(args.use)
    episodes.check_keys([key for task in tasks for key in task.keys], tokens.keys, args.use)
    return tasks, config


def write_json(path: str | Path, content: dict[str, Any], indent: int | None = None) -> None:
    with write_aside(Path(path)) as aside:
        text = json.dumps(content, indent=indent, ensure_ascii=False, allow_nan=False)
        aside.write_text(f"{text}\n", encoding="utf-8")


COMMANDS = {
    "show": Command("print the most frequent words of clips", add_show, show),
    "overlay": Command("draw the words of clips over their frames", add_overlay, draw_overlays),
    "episodes": Command("draw few-shot tasks from labelled clips", add_episodes, draw_episodes),
    "fewshot": Command("classify clips by their words, with baselines and a language model", add_fewshot, evaluate),
}
