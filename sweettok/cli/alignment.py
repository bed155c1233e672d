"""`sweettok eval qa`, `tvalign` and `vbench`: answers about videos, and whether generated videos show their prompts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sweettok.cli import options
from sweettok.cli.main import Command
from sweettok.distributed import join_processes
from sweettok.eval import qa, tvalign, vbench
from sweettok.eval.judges import EndpointJudge, Judge, LocalJudge, Rules
from sweettok.eval.report import has_kind, write_json
from sweettok.store import check_output, check_output_folder
from sweettok.vtok.language import VideoLanguageModel
from sweettok.words.endpoint import Endpoint

# Options of each judge, the first ones required.
JUDGES = {
    "rules": (),
    "local": ("model", "precision"),
    "endpoint": ("model", "base_url", "timeout", "retries", "concurrency", "key_name"),
}
FRAMES = 8  # that a vision-language model sees
SIZE = 336


def add_triplets(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="FILE", help="JSON Lines file for prompts, questions, options and answers")
    parser.add_argument(
        "--num", type=options.integer(7), default=tvalign.NUM, help=f"triplets (default: {tvalign.NUM})"
    )
    options.add_seed(parser)


def triplets(args: argparse.Namespace) -> None:
    check_output(args.out, (".jsonl",))
    tvalign.write_triplets(args.out, args.num, args.seed)
    print(f"{args.out}: {args.num} triplets")


def add_tvalign(parser: argparse.ArgumentParser) -> None:
    add, default = parser.add_argument, Endpoint
    add("--triplets", required=True, metavar="FILE", help="file of `sweettok eval tvalign-prompts`, or one like it")
    add("--videos", required=True, metavar="DIR", help="folder of generated videos, named ID.mp4")
    add("--out", required=True, metavar="FILE", help="file for the JSON report")
    add("--answers", metavar="FILE", help="JSON Lines file of answers, to resume (default: beside the report)")
    drawn = "triplets whose drawn clips are judged too, to know the best possible result (default: 140)"
    add("--ceiling", type=options.integer(0), default=140, metavar="N", help=drawn)
    group = parser.add_argument_group("judge")
    add = group.add_argument
    text = "the tracker of scenes, a vision-language model of Hugging Face, or one behind an OpenAI-like server"
    add("--judge", choices=tuple(JUDGES), default="rules", help=f"{text} (default: rules)")
    add("--frames", type=options.integer(1), metavar="N", help=f"frames that a model sees (default: {FRAMES})")
    add("--size", type=options.integer(8), metavar="N", help=f"height and width of these frames (default: {SIZE})")
    add("--model", metavar="DIR|NAME", help="the local model's folder, or the model's name at the endpoint")
    add("--precision", choices=("no", "bf16"), help="precision of a local model (default: no, float32)")
    add("--base-url", metavar="URL", help="URL of the endpoint, such as http://localhost:8000/v1")
    add("--key-name", metavar="NAME", help=f"environment variable with the key (default: {default.key_name})")
    seconds = options.real(positive=True)
    add("--timeout", type=seconds, metavar="S", help=f"seconds per attempt (default: {default.timeout})")
    add(
        "--retries", type=options.integer(0), metavar="N", help=f"attempts after the first (default: {default.retries})"
    )
    parallel = f"parallel requests (default: {default.concurrency})"
    add("--concurrency", type=options.integer(1, 256), metavar="N", help=parallel)


def run_tvalign(args: argparse.Namespace) -> None:
    answers = args.answers or str(Path(args.out).with_suffix(".answers.jsonl"))
    inputs = [args.triplets, args.videos]
    check_output(args.out, (".json",), inputs, owned=lambda path: has_kind(path, "tvalign"))
    check_output(answers, (".jsonl",), inputs)
    tvalign.find_videos(args.videos, tvalign.read_triplets(args.triplets))
    if args.judge == "rules" and (args.frames or args.size):
        raise ValueError("--judge rules looks at all pixels of all frames: --frames and --size are for models")
    shown = (None, None) if args.judge == "rules" else (args.frames or FRAMES, args.size or SIZE)
    report = tvalign.evaluate(args.triplets, args.videos, open_judge(args), answers, *shown, args.ceiling)
    write_json(args.out, report)
    print(f"{tvalign.summary(report)}\nreport: {args.out}")


def open_judge(args: argparse.Namespace) -> Judge:
    """The judge of the options. ValueError for options of another judge, or missing ones."""
    allowed = JUDGES[args.judge]
    chosen = options.given(args, *dict.fromkeys((*JUDGES["local"], *JUDGES["endpoint"])))
    for name in [name for name in chosen if name not in allowed]:
        raise ValueError(f"--{name.replace('_', '-')} cannot be used with --judge {args.judge}")
    for name in [name for name in ("model", "base_url") if name in allowed and name not in chosen]:
        raise ValueError(f"--judge {args.judge} needs --{name.replace('_', '-')}")
    if args.judge == "local":
        return LocalJudge(chosen.pop("model"), device=join_processes().device, **chosen)
    return EndpointJudge(Endpoint(**chosen)) if args.judge == "endpoint" else Rules()


def add_qa(parser: argparse.ArgumentParser) -> None:
    options.add_checkpoint(parser, "a language model of the stage vtok", shipped=False)
    parser.add_argument("--data", required=True, metavar="LIST", help="list of clips, with questions.jsonl beside it")
    parser.add_argument("--root", metavar="DIR", help="folder of relative paths in the list")
    parser.add_argument("--limit", type=options.integer(1), metavar="N", help="only the first N clips")
    parser.add_argument("--blind", action="store_true", help="ask without showing the videos")
    parser.add_argument("--out", metavar="FILE", help="file for the JSON report")
    options.add_batch_size(parser, 32)


def run_qa(args: argparse.Namespace) -> None:
    if args.out:
        check_output(args.out, (".json",), [args.checkpoint, args.data], owned=lambda path: has_kind(path, "qa"))
    model = VideoLanguageModel.from_pretrained(args.checkpoint).to(join_processes().device)
    report = {"model": args.checkpoint}
    report |= qa.evaluate(model, args.data, args.root, args.limit, args.blind, args.batch_size)
    print(qa.summary(report))
    if args.out:
        write_json(args.out, report)
        print(f"report: {args.out}")


def add_vbench_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompts", required=True, metavar="FILE", help="VBench's own VBench_full_info.json")
    rows = 'JSON Lines: {"prompt", "video"} with VBench\'s prompt and the path of a video, relative to this file'
    parser.add_argument("--videos", required=True, metavar="FILE", help=rows)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for a folder of videos per dimension")


def vbench_export(args: argparse.Namespace) -> None:
    check_output_folder(args.out, [args.prompts, args.videos])
    source, videos = Path(args.videos), []
    for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            videos.append((row["prompt"], source.parent / row["video"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{source}, line {number} has no prompt and video: {error}") from error
    for folder, (count, expected) in vbench.export(args.prompts, videos, args.out).items():
        print(f"{Path(args.out) / folder}: {count} of {expected} videos")


def add_vbench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("results", nargs="+", metavar="PATH", help="files *_eval_results.json, or folders of them")
    parser.add_argument("--out", metavar="FILE", help="file for the JSON report")


def run_vbench(args: argparse.Namespace) -> None:
    if args.out:
        check_output(args.out, (".json",), args.results, owned=lambda path: has_kind(path, "vbench"))
    scores = vbench.read_results(args.results)
    report = {"kind": "vbench", "format": 1, "dimensions": scores, "scores": vbench.combine(scores)}
    print(vbench.summary(report))
    if args.out:
        write_json(args.out, report)


COMMANDS = {
    "qa": Command("ask a language model questions about videos, and count right answers", add_qa, run_qa),
    "tvalign-prompts": Command("write prompts and questions about seven skills", add_triplets, triplets),
    "tvalign": Command("judge generated videos by questions about their prompts", add_tvalign, run_tvalign),
    "vbench-export": Command("arrange videos in folders as VBench reads them", add_vbench_export, vbench_export),
    "vbench": Command("combine results of VBench to its quality, semantic and total score", add_vbench, run_vbench),
}
