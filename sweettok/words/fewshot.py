"""Few-shot classification of clips from their words, by a language model and by baselines."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import lru_cache
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sweettok.data.episodes import Episode
from sweettok.data.tokens import TokenDataset
from sweettok.tokenizer import histograms
from sweettok.tokenizer.histograms import nearest_by_distance, nearest_by_product, word_counts
from sweettok.tokenizer.layout import TokenLayout
from sweettok.tokenizer.model import SweetTok
from sweettok.words import prompts
from sweettok.words.answers import AnswerCache, ask
from sweettok.words.models import Answer, LanguageModel
from sweettok.words.prompts import PromptConfig
from sweettok.words.summary import frequent_only, frequent_words

MODEL = "model"  # key of the language model in the results
BASELINES = {
    "histogram": "histograms of all words",
    "listed": "the words that a prompt lists, without their counts",
    "vectors": "means of the words' code vectors",
}
Predictions = list[list[str | None]]  # class name or None of each query of each episode


class ClipWords:
    """Words of the clips of token shards, by key; only the first view of each clip."""

    def __init__(self, tokens: TokenDataset, names: Sequence[str]):
        self.tokens, self.names = tokens, names
        self.layout = TokenLayout(**tokens.layout.fields)
        self._rows = {key: place * tokens.manifest.views for place, key in enumerate(tokens.keys)}

    def counts(self, keys: Sequence[str]) -> Tensor:
        """Occurrences of each word, float32 (clips, V)."""
        ids = torch.stack([self.tokens[self._rows[key]]["ids"] for key in keys])
        return word_counts(ids, self.layout.vocab_size)

    def frequent(self, key: str, config: PromptConfig) -> prompts.Words:
        """The words of a clip for a prompt."""
        return frequent_words(self.counts([key])[0], self.layout, self.names, config.words, config.kinds)


def classify_by_baselines(
    episodes: Sequence[Episode], clips: ClipWords, tokenizer: SweetTok, config: PromptConfig
) -> dict[str, Predictions]:
    codes, layout, kinds = tokenizer.embedding_matrix().vectors, clips.layout, config.kinds
    methods = {
        "histogram": (lambda counts: histograms.histograms(counts, layout, kinds), nearest_by_product),
        "listed": (
            lambda counts: histograms.histograms(frequent_only(counts, layout, config.words) > 0, layout, kinds),
            nearest_by_product,
        ),
        "vectors": (lambda counts: histograms.mean_vectors(counts, layout, kinds, codes), nearest_by_distance),
    }
    predictions: dict[str, Predictions] = {name: [] for name in methods}
    for episode in tqdm(episodes, desc="baselines", unit="episode", disable=None):
        counts = clips.counts(episode.keys)
        for name, (features, nearest) in methods.items():
            support, queries = features(counts).tensor_split([len(episode.keys) - len(episode.queries)])
            chosen = nearest(queries, support.unflatten(0, (len(episode.classes), -1)))
            predictions[name].append([episode.classes[place] for place in chosen.tolist()])
    return predictions


def classify_by_model(
    episodes: Sequence[Episode], clips: ClipWords, model: LanguageModel, config: PromptConfig, cache: AnswerCache
) -> tuple[Predictions, dict[str, Any]]:
    """Predictions of a language model, and the token counts of all answers and of the new (not cached) ones."""
    words_of = lru_cache(maxsize=None)(lambda key: clips.frequent(key, config))
    questions = [
        (prompts.build(episode, key, words_of, config, number), tuple(sorted(episode.classes)))
        for number, episode in enumerate(episodes)
        for key, _ in episode.queries
    ]
    answers, new = ask(model, questions, cache)
    choices = iter([answer.choice for answer in answers])
    cost = {"all": _cost(answers), "new": _cost(new), "requests": getattr(model, "attempts", None)}
    return [[next(choices) for _ in episode.queries] for episode in episodes], cost


def _cost(answers: Sequence[Answer]) -> dict[str, int]:
    tokens = {name: sum(getattr(answer, name) for answer in answers) for name in ("prompt_tokens", "completion_tokens")}
    return {"answers": len(answers), **tokens}


def score(episodes: Sequence[Episode], predictions: Predictions) -> dict[str, Any]:
    """Accuracy: mean over episodes, half width of its 95% interval (None for one episode), and of each class."""
    correct, confusions = defaultdict(list), defaultdict(Counter)
    accuracies = []
    for episode, names in zip(episodes, predictions, strict=True):
        truths = [episode.classes[place] for _, place in episode.queries]
        accuracies.append(fmean(name == truth for name, truth in zip(names, truths, strict=True)))
        for name, truth in zip(names, truths, strict=True):
            correct[truth].append(name == truth)
            confusions[truth][name or "(none)"] += 1
    classes = {
        name: {"queries": len(of_class), "accuracy": fmean(of_class), "predicted": dict(confusions[name].most_common())}
        for name, of_class in sorted(correct.items())
    }
    unnamed = sum(names.count(None) for names in predictions)
    return {**_mean(accuracies), "without_class": unnamed, "episode_accuracies": accuracies, "classes": classes}


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Mean difference of the accuracies of two scores on the same episodes, with its 95% interval."""
    pairs = zip(ours["episode_accuracies"], theirs["episode_accuracies"], strict=True)
    return _mean([a - b for a, b in pairs])


def _mean(values: Sequence[float]) -> dict[str, Any]:
    half = 1.96 * stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"accuracy": fmean(values), "half_interval": half}


def as_text(report: dict[str, Any]) -> str:
    """A report as text: the accuracy of each method in per cent, then of each class."""
    size, results, model = report["episodes"], report["results"], report["model"]
    sizes = f"{size['n_way']}-way {size['k_shot']}-shot, {size['queries']} queries each"
    lines = [f"{size['num']} episodes, {sizes}; chance {report['chance']:.1%}"]
    for name, result in results.items():
        about = f"{model['model']}, {model['answers']}" if name == MODEL else BASELINES[name]
        lines.append(f"  {name:<10} {_percent(result)}  {about}")
        if result["without_class"]:
            lines.append(f"  {'':<10} {result['without_class']} answers without a class, counted as wrong")
    for name, result in results.get(MODEL, {}).get("minus", {}).items():
        lines.append(f"  {MODEL} minus {name}: {_percent(result)} points")
    for which in ("all", "new") if report["cost"] else ():
        cost = report["cost"][which]
        tokens = f"{cost['prompt_tokens']} + {cost['completion_tokens']} tokens"
        lines.append(f"  {which} answers: {cost['answers']}, {tokens}")
    lines.append(f"  {'class':<24} {'queries':>7}" + "".join(f"{name:>12}" for name in results))
    for name, of_class in next(iter(results.values()))["classes"].items():
        shares = "".join(f"{result['classes'][name]['accuracy']:>12.1%}" for result in results.values())
        lines.append(f"  {name:<24} {of_class['queries']:>7}{shares}")
    return "\n".join(lines)


def _percent(result: dict[str, Any]) -> str:
    half = "" if result["half_interval"] is None else f" +- {100 * result['half_interval']:.1f}"
    return f"{100 * result['accuracy']:5.1f}{half}"
