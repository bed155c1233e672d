"""The fewshot command: clips are named by their words, by a language model and by baselines, on the same episodes.

A folder of results holds
  episodes.json   the tasks (`sweettok.words.episodes`)
  answers.jsonl   what the language model said, one line an answer; a run that broke off goes on after them
  report.json     accuracies with intervals, per class, all settings, and what the answers cost
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import sweettok
from sweettok.data.tokens import TokenDataset
from sweettok.distributed import join_processes
from sweettok.store import write_aside
from sweettok.tokenizer.model import SweetTok
from sweettok.words import baselines, prompts, sources
from sweettok.words import episodes as tasks
from sweettok.words.answers import AnswerCache, Prices, ask
from sweettok.words.backends import Backend, LocalModel
from sweettok.words.endpoint import WAYS, Endpoint, EndpointConfig
from sweettok.words.episodes import Episode, EpisodeConfig
from sweettok.words.prompts import PromptConfig
from sweettok.words.summary import KINDS, frequent_words, word_counts

FORMAT = 1
MODEL = "model"  # among the results, beside the baselines
Named = list[list[str | None]]  # of each episode, of each query: a class name, or None
OF_MODELS = {
    "none": set(),
    "local": {"model", "answers", "precision"},
    "endpoint": {"model", "answers", "base_url", "timeout", "retries", "concurrency", "key_name", "price_in",
                 "price_out", "body"},
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--tokens", required=True, metavar="SHARDS", help="folder of token shards with labels and names of classes")
    add("--checkpoint", required=True, metavar="MODEL", help="the tokenizer of these tokens: a folder, or user/name on "
        "the hub")  # fmt: skip
    add("--out", required=True, metavar="DIR", help="episodes.json, answers.jsonl and report.json")
    add("--use", metavar="FILE", help="the episodes of this file, instead of drawing some")
    tasks.add_sizes(parser)
    default = PromptConfig()
    add("--words", type=int, default=default.words, metavar="N", help="most frequent words of each kind in a prompt "
        f"(default: {default.words})")  # fmt: skip
    add("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="of words to look at (default: all)")
    add("--no-instruction", action="store_true", help="a prompt of examples alone")
    add("--repeats", type=int, default=default.repeats, metavar="R", help="show the examples R more times (default: 0)")
    add("--order", choices=prompts.ORDERS, default=default.order, help="of the examples (default: one of each class in "
        "turn)")  # fmt: skip
    _add_models(parser)


def _add_models(parser: argparse.ArgumentParser) -> None:
    add, default = parser.add_argument, EndpointConfig
    add("--backend", choices=tuple(OF_MODELS), default="none", help="local: a Hugging Face model in a folder; "
        "endpoint: an OpenAI-compatible server (default: none, the baselines alone)")  # fmt: skip
    add("--model", metavar="DIR|NAME", help="the local model's folder, or its name at the endpoint")
    add("--answers", choices=WAYS, help="likelihood: compare the class names' (default of local); free: read what is "
        "written (default of endpoint); schema: of an endpoint, class names are all it may write")  # fmt: skip
    add("--precision", choices=("no", "bf16"), help="of a local model (default: no, float32)")
    add("--base-url", metavar="URL", help="of the endpoint, such as http://localhost:8000/v1")
    add("--key-name", metavar="NAME", help=f"environment variable with the key (default: {default.key_name})")
    add("--timeout", type=float, metavar="S", help=f"seconds of one attempt (default: {default.timeout:g})")
    add("--retries", type=int, metavar="N", help=f"attempts after the first (default: {default.retries})")
    add("--concurrency", type=int, metavar="N", help=f"requests at once (default: {default.concurrency})")
    add("--price-in", type=float, metavar="P", help="price of a million tokens of prompts (default: 0)")
    add("--price-out", type=float, metavar="P", help="price of a million tokens of answers (default: 0)")
    add("--body", metavar="JSON", help="further fields of each request; null takes one away")


def main(args: argparse.Namespace) -> None:
    """Name all queries of all episodes in every way, and report. Errors name what is wrong, before answers are paid."""
    how = PromptConfig(
        args.words, tuple(args.kinds), not args.no_instruction, args.repeats, args.order, seed=args.seed or 0
    )
    backend, prices = make_backend(args), Prices(args.price_in or 0, args.price_out or 0)
    tokenizer = SweetTok.from_pretrained(args.checkpoint)
    tokens = sources.open_tokens(args.tokens, tokenizer)
    episodes, drawn = find_episodes(args, tokens)
    clips = ClipWords(tokens, tokenizer.embedding_matrix().words)
    out = Path(args.out)
    cache = AnswerCache(out / "answers.jsonl")
    tasks.write(out / "episodes.json", episodes, drawn)
    by_words = name_by_baselines(episodes, clips, tokenizer, how)
    results = {name: score(episodes, named) for name, named in by_words.items()}
    cost = None
    if backend is not None:
        named, cost = name_by_model(episodes, clips, backend, how, cache, prices)
        result = score(episodes, named)
        minus = {name: difference(result["of_episodes"], results[name]["of_episodes"]) for name in by_words}
        results[MODEL] = {**result, "minus": minus}
    report = {
        "format": FORMAT, "kind": "fewshot", "sweettok": sweettok.__version__, "tokens": str(args.tokens),
        "tokenizer_hash": tokens.tokenizer_hash, "episodes": asdict(drawn), "chance": 1 / drawn.n_way,
        "episodes_hash": tasks.episodes_hash(episodes), "prompt": asdict(how),
        "backend": None if backend is None else backend.identity, "cost": cost, "results": results,
    }  # fmt: skip
    with write_aside(out / "report.json") as aside:
        text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
        aside.write_text(f"{text}\n", encoding="utf-8")
    print(f"{as_text(report)}\nreport: {out / 'report.json'}")


def make_backend(args: argparse.Namespace) -> Backend | None:
    """The language model that the arguments name. ValueError for options of another one, or too few."""
    everything = set().union(*OF_MODELS.values())
    given = {name: getattr(args, name) for name in everything if getattr(args, name) is not None}
    odd = sorted(given.keys() - OF_MODELS[args.backend])
    if odd:
        told = ", ".join(f"--{name.replace('_', '-')}" for name in odd)
        raise ValueError(f"{told} means nothing with --backend {args.backend}")
    missing = [name for name in ("model", "base_url") if name in OF_MODELS[args.backend] and name not in given]
    if missing:
        raise ValueError(f"--backend {args.backend} needs {' and '.join('--' + n.replace('_', '-') for n in missing)}")
    if args.backend == "none":
        return None
    if args.backend == "local":
        return LocalModel(given.pop("model"), device=join_processes().device, **given)
    body = given.pop("body", None)
    if body is not None:
        given["body"] = tuple(read_body(body).items())
    return Endpoint(EndpointConfig(**{n: value for n, value in given.items() if n not in ("price_in", "price_out")}))


def read_body(text: str) -> dict[str, Any]:
    """The fields of --body; ValueError unless it is a JSON object."""
    try:
        body = json.loads(text)
    except ValueError as error:
        raise ValueError(f"--body is no JSON ({error}): {text!r}") from error
    if not isinstance(body, dict):
        raise ValueError(f"--body must be a JSON object, got {text!r}")
    return body


def find_episodes(args: argparse.Namespace, tokens: TokenDataset) -> tuple[tuple[Episode, ...], EpisodeConfig]:
    """The episodes of --use, or new ones, and how they were drawn."""
    if args.use is None:
        drawn = EpisodeConfig(**tasks.given_sizes(args))
        return tasks.draw(tasks.labelled_tokens(tokens, args.labels), drawn), drawn
    given = [name for name in (*tasks.given_sizes(args), "labels") if getattr(args, name) is not None]
    if set(given) - {"seed"}:  # which the order of the examples may depend on, too
        raise ValueError(f"--use takes episodes as they are: leave out {', '.join(given)}")
    episodes, drawn = tasks.read(args.use)
    tasks.check_episodes(episodes, tokens.keys, args.use)
    return episodes, drawn


class ClipWords:
    """What the clips of token shards say, by key; of several views of a clip, the first."""

    def __init__(self, tokens: TokenDataset, names: Sequence[str]):
        self.tokens, self.layout, self.names = tokens, tokens.layout, names
        self._rows = {key: place * tokens.manifest.views for place, key in enumerate(tokens.keys)}

    def counts(self, keys: Sequence[str]) -> Tensor:
        """How often each word is said, float32 (clips, V)."""
        return word_counts(torch.stack([self.tokens[self._rows[key]]["ids"] for key in keys]), self.layout)

    def frequent(self, key: str, how: PromptConfig) -> prompts.Words:
        return frequent_words(self.counts([key])[0], self.layout, self.names, how.words, how.kinds)


def name_by_baselines(
    episodes: Sequence[Episode], clips: ClipWords, tokenizer: SweetTok, how: PromptConfig
) -> dict[str, Named]:
    codes, layout = tokenizer.embedding_matrix().vectors, clips.layout
    ways: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
        "histogram": (lambda c: baselines.histograms(c, layout, how.kinds), baselines.nearest_by_product),
        "listed": (lambda c: baselines.listed(c, layout, how.kinds, how.words), baselines.nearest_by_product),
        "vectors": (lambda c: baselines.mean_vectors(c, layout, how.kinds, codes), baselines.nearest_by_distance),
    }
    named: dict[str, Named] = {name: [] for name in ways}
    for episode in tqdm(episodes, desc="baselines", unit="episode", disable=None):
        counts = clips.counts(episode.keys)
        for name, (features, nearest) in ways.items():
            support, queries = features(counts).tensor_split([len(episode.keys) - len(episode.queries)])
            chosen = nearest(queries, support.unflatten(0, (len(episode.classes), -1)))
            named[name].append([episode.classes[place] for place in chosen.tolist()])
    return named


def name_by_model(
    episodes: Sequence[Episode],
    clips: ClipWords,
    backend: Backend,
    how: PromptConfig,
    cache: AnswerCache,
    prices: Prices,
) -> tuple[Named, dict[str, Any]]:
    """What a language model names, and what that cost: `all` answers, and those that this run asked for (`new`)."""
    words_of = lru_cache(maxsize=None)(lambda key: clips.frequent(key, how))
    questions = [
        (prompts.build(episode, key, words_of, how, number), tuple(prompts.candidates(episode)))
        for number, episode in enumerate(episodes)
        for key, _ in episode.queries
    ]
    answers, new = ask(backend, questions, cache)
    choices = iter([answer.choice for answer in answers])
    cost = {"all": prices.of(answers), "new": prices.of(new)}
    if isinstance(backend, Endpoint):
        cost["requests"] = backend.attempts
    return [[next(choices) for _ in episode.queries] for episode in episodes], cost


def score(episodes: Sequence[Episode], named: Named) -> dict[str, Any]:
    """Accuracy: mean over episodes, with half the width of its 95% interval (None for one episode); and per class."""
    right_of, named_as = defaultdict(list), defaultdict(Counter)
    accuracies, unnamed = [], 0
    for episode, names in zip(episodes, named, strict=True):
        truths = [episode.classes[place] for _, place in episode.queries]
        accuracies.append(fmean(name == truth for name, truth in zip(names, truths, strict=True)))
        unnamed += names.count(None)
        for name, truth in zip(names, truths, strict=True):
            right_of[truth].append(name == truth)
            named_as[truth][name or "(none)"] += 1
    classes = {
        name: {"asked": len(right), "accuracy": fmean(right), "named": dict(named_as[name].most_common())}
        for name, right in sorted(right_of.items())
    }
    return {**_mean(accuracies), "unnamed": unnamed, "of_episodes": accuracies, "classes": classes}


def difference(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """Mean difference of two ways on the same episodes, with half the width of its 95% interval."""
    return _mean([a - b for a, b in zip(ours, theirs, strict=True)])


def _mean(values: Sequence[float]) -> dict[str, Any]:
    half = 1.96 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"accuracy": fmean(values), "half_interval": half}


def as_text(report: dict[str, Any]) -> str:
    """The report as tables: each way's accuracy, then each class under each way, in per cent."""
    size, results = report["episodes"], report["results"]
    lines = [f"{size['num']} episodes, {size['n_way']}-way {size['k_shot']}-shot, {size['queries']} queries each; "
             f"chance {report['chance']:.1%}"]  # fmt: skip
    for name, result in results.items():
        lines.append(f"  {name:<10} {_percent(result)}  {_told(name, report)}")
        if result["unnamed"]:
            lines.append(f"  {'':<10} {result['unnamed']} answers name no class, and count as wrong")
    for name, result in results.get(MODEL, {}).get("minus", {}).items():
        lines.append(f"  {MODEL} minus {name}: {_percent(result)} points")
    if report["cost"] is not None:
        for which, cost in (("all answers", report["cost"]["all"]), ("of this run", report["cost"]["new"])):
            lines.append(f"  {which}: {cost['answers']}, {cost['prompt_tokens']} + {cost['completion_tokens']} tokens, "
                         f"price {cost['price']:.4f}")  # fmt: skip
    lines.append(f"  {'class':<24} {'asked':>6}" + "".join(f"{name:>12}" for name in results))
    for name, told in next(iter(results.values()))["classes"].items():
        shares = "".join(f"{result['classes'][name]['accuracy']:>12.1%}" for result in results.values())
        lines.append(f"  {name:<24} {told['asked']:>6}{shares}")
    return "\n".join(lines)


def _percent(result: dict[str, Any]) -> str:
    half = "" if result["half_interval"] is None else f" +- {100 * result['half_interval']:.1f}"
    return f"{100 * result['accuracy']:5.1f}{half}"


def _told(name: str, report: dict[str, Any]) -> str:
    if name != MODEL:
        return baselines.BASELINES[name]
    return f"{report['backend']['model']}, {report['backend']['answers']}"
