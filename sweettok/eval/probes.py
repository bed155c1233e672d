"""Probes: how well simple classifiers tell the classes of held-out clips from words and features of a tokenizer.

Letters: N clips, M test clips, F width of a feature, n classes, P penalties.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from scipy.stats import binomtest
from torch import Tensor
from tqdm import tqdm

from sweettok.data.episodes import Episode, EpisodeConfig, draw, episodes_hash
from sweettok.data.lists import ClipList, load_clips, some
from sweettok.data.shards import digest
from sweettok.data.synonyms import read_attribute
from sweettok.distributed import join_processes
from sweettok.eval.metrics import mean_with_interval
from sweettok.eval.report import checkpoint_hashes, versions
from sweettok.eval.sources import describe
from sweettok.eval.tokenizers import clip_batches, preprocessing_of, small_pixels
from sweettok.proxy.model import ProxyTokenizer
from sweettok.tokenizer.histograms import histograms, nearest_by_product, word_counts
from sweettok.tokenizer.layout import KINDS
from sweettok.tokenizer.model import SweetTok

FORMAT = 1
EPISODES = EpisodeConfig(k_shot=5)
PENALTIES = torch.logspace(-6, 1, 8, dtype=torch.float64)  # of ridge regression, relative to the features' variance
FOLDS = 4  # of the training clips, to choose the penalty
HISTOGRAMS = {kind: (kind,) for kind in KINDS}
HISTOGRAMS |= {"appearance words": KINDS[:2], "motion words": KINDS[2:], "all words": KINDS}
Features = Mapping[str, Tensor]  # by name
CODES, PIXELS = "proxy codes", "pixels"


def probe(
    checkpoint: str | Path,
    train: str | Path,
    data: str | Path,
    proxy: str | Path | None = None,
    attribute: str | None = None,
    config: EpisodeConfig = EPISODES,
    batch_size: int = 8,
) -> dict[str, Any]:
    """Classify the clips of a list by the words and features of a SweetTok, given the labelled clips of another list.

    Args:
        checkpoint: the tokenizer's folder. proxy: folder of a proxy tokenizer, whose codes are a baseline.
        train, data: lists of labelled training and test clips.
        attribute: in place of the labels, one of ATTRIBUTES of synthetic clips, from captions.jsonl beside each list.
        config: few-shot tasks with examples from `train` and queries from `data`. Nothing else depends on its seed.

    Returns:
        A report: for each feature its width and the accuracies of `classify`, and what they were measured on.

    Raises ValueError for lists that share clips, also under other names, and for classes without training clips.
    """
    device = join_processes().device
    tokenizer = SweetTok.from_pretrained(checkpoint).to(device)
    teacher = None if proxy is None else ProxyTokenizer.from_pretrained(proxy).to(device)
    ours, theirs = ((m.config.num_frames, m.config.height, m.config.width) for m in (tokenizer, teacher or tokenizer))
    if ours != theirs:
        raise ValueError(f"the proxy takes clips of (frames, height, width) {theirs}, the tokenizer {ours}")
    clips = load_clips(train), load_clips(data)
    names = class_names(train, clips[0], attribute), class_names(data, clips[1], attribute)
    labels = class_indices(*names)
    check_disjoint(*clips)
    examples, queries = ([(str(row), name) for row, name in enumerate(part)] for part in names)
    episodes = draw(queries, config, examples)
    inputs = [encode_clips(tokenizer, teacher, part, batch_size) for part in clips]
    return {
        **{"format": FORMAT, "kind": "probe", "attribute": attribute or "label", "versions": versions()},
        "clips": {"train": describe(train, clips[0]), "test": describe(data, clips[1])},
        "preprocessing": asdict(preprocessing_of(tokenizer)),
        "weights": {"tokenizer": checkpoint_hashes(checkpoint), "proxy": proxy and checkpoint_hashes(proxy)},
        "tokenizer_hash": tokenizer.ids_hash(),
        "episodes": {**asdict(config), "sha256": episodes_hash(episodes), "chance": 1 / config.n_way},
        "classes": dict(sorted(Counter(names[1]).items())),
        "chance": 1 / len(set(names[0])),
        "most_common": accuracy(labels[0].mode().values, labels[1])["accuracy"],
        "results": classify(*inputs, *labels, episodes),
    }


def classify(
    train: Features, test: Features, labels: Tensor, truth: Tensor, episodes: Sequence[Episode]
) -> dict[str, dict[str, Any]]:
    """Features (N, F) and (M, F), classes (N,) and (M,) of clips -> accuracies by name of a feature.

    Keys of episodes are rows: those of examples in `train`, those of queries in `test`. Every feature has "linear";
    histograms also have "nearest_mean" and "few_shot". Pixels are reduced to the width of pooled features.
    """
    results = {}
    for name, features in train.items():
        of_test = test[name]
        if name == PIXELS:
            features, of_test = principal(features, of_test, train["spatial features"].shape[1])
        results[name] = {"width": features.shape[1], "linear": linear(features, labels, of_test, truth)}
        if name in (*HISTOGRAMS, CODES):
            results[name]["nearest_mean"] = accuracy(nearest_mean(features, labels, of_test), truth)
            results[name]["few_shot"] = few_shot(features, of_test, episodes)
    return results


@torch.no_grad()
def encode_clips(tokenizer: SweetTok, proxy: Any, clips: ClipList, batch_size: int) -> dict[str, Tensor]:
    """Features (N, F) of clips by name: histograms of words and proxy codes, pooled query features, and pixels.

    `proxy` is a ProxyTokenizer, or None for no codes. Histograms are square roots of relative frequencies. Features of
    a branch are the mean and the standard deviation over its queries. Pixels are averaged to 16x16 in each frame.
    """
    parts: list[dict[str, Tensor]] = []
    layout = tokenizer.clip_layout(tokenizer.clip_frames)
    groups = {name: [k for k in kinds if layout.kind_ranges[k]] for name, kinds in HISTOGRAMS.items()}
    batches = tqdm(clip_batches(tokenizer, clips, batch_size), "encoding", -(-len(clips) // batch_size), disable=None)
    for _, videos in batches:
        found = {name: vectors for name, vectors in tokenizer.features(videos)._asdict().items() if vectors is not None}
        lookups = {branch: tokenizer.quantizers[branch](vectors) for branch, vectors in found.items()}
        ids = tokenizer.ids(lookups["spatial"], lookups.get("temporal"))
        counts = word_counts(ids, layout.vocab_size)
        part = {name: histograms(counts, layout, kinds) for name, kinds in groups.items() if kinds}
        for branch, vectors in found.items():
            part[f"{branch} features"] = torch.cat((vectors.mean(1), vectors.std(1, correction=0)), dim=1)
        if proxy is not None:
            codes = word_counts(proxy.encode(videos.to(tokenizer.device)).flatten(1), proxy.config.num_codes)
            part[CODES] = (codes / codes.sum(1, keepdim=True)).sqrt()
        parts.append({**part, PIXELS: small_pixels(videos)})
    return {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}


def principal(train: Tensor, test: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """(N, F), (M, F) -> (N, width), (M, width): the largest principal components of the training clips, or all."""
    mean = train.mean(0)
    axes = torch.linalg.svd(train - mean, full_matrices=False)[2][:width].T
    return (train - mean) @ axes, (test - mean) @ axes


def nearest_mean(train: Tensor, labels: Tensor, test: Tensor) -> Tensor:
    """(N, F), classes (N,) from 0, (M, F) -> (M,) the class whose mean has the largest cosine similarity."""
    means = torch.stack([train[labels == label].mean(0) for label in range(int(labels.max()) + 1)])
    return nearest_by_product(test, F.normalize(means, dim=1)[:, None])


def ridge(train: Tensor, labels: Tensor, test: Tensor, num_classes: int) -> Tensor:
    """(N, F), classes (N,), (M, F) -> (P, M) the class of the largest output of ridge regression, for each penalty.

    Targets are 1 for the class of a clip, else 0; features and targets are centred.
    """
    train, test, targets = train.double(), test.double(), F.one_hot(labels, num_classes).double()
    left, values, right = torch.linalg.svd(train - train.mean(0), full_matrices=False)
    total = values.square().sum().clamp_min(1e-12)  # features may be constant
    weights = values / (values.square() + PENALTIES[:, None] * total)
    fitted = weights[..., None] * (left.T @ (targets - targets.mean(0)))
    return ((test - train.mean(0)) @ right.T @ fitted + targets.mean(0)).argmax(-1)


def linear(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor) -> dict[str, Any]:
    """Accuracy of ridge regression on the test clips (M, F), fitted to the training clips (N, F).

    The penalty is the largest of those with the best accuracy on training clips, each fold of which is predicted by a
    fit to the others.
    """
    num_classes = int(labels.max()) + 1
    folds = torch.empty_like(labels)  # every class is spread over all folds
    folds[labels.argsort(stable=True)] = torch.arange(len(labels)) % FOLDS
    right = torch.zeros(len(PENALTIES))
    for fold in folds.unique():
        inside = folds != fold
        predicted = ridge(train[inside], labels[inside], train[~inside], num_classes)
        right += (predicted == labels[~inside]).sum(1)
    best = int((right == right.max()).nonzero().max())
    found = accuracy(ridge(train, labels, test, num_classes)[best], truth)
    return {**found, "penalty": float(PENALTIES[best]), "training_folds": float(right[best]) / len(labels)}


def few_shot(train: Tensor, test: Tensor, episodes: Sequence[Episode]) -> dict[str, Any]:
    """Accuracy of episodes of unit vectors (N, F), (M, F): the class whose examples have the largest mean product.

    The 95% interval is that of the mean over episodes, which share clips; it has no width for one episode.
    """
    shares = []
    for episode in episodes:
        support = torch.tensor([[int(row) for row in shown] for shown in episode.support])
        rows, places = torch.tensor([(int(row), place) for row, place in episode.queries]).T
        shares.append(accuracy(nearest_by_product(test[rows], train[support]), places)["accuracy"])
    found = mean_with_interval(shares)
    mean, half = found["mean"], found["interval95"] or 0
    return {"accuracy": mean, "interval95": [max(mean - half, 0.0), min(mean + half, 1.0)]}


def accuracy(predicted: Tensor, truth: Tensor) -> dict[str, Any]:
    """Fraction of equal classes, with its 95% Wilson interval."""
    right = int((predicted == truth).sum())
    low, high = binomtest(right, len(truth)).proportion_ci(method="wilson")
    return {"accuracy": right / len(truth), "interval95": [low, high], "right": right, "clips": len(truth)}


def class_names(source: str | Path, clips: ClipList, attribute: str | None = None) -> list[str]:
    """The class of each clip: its label, or an attribute of its caption in captions.jsonl beside the list."""
    if attribute is None:
        if clips.labels is None:
            raise ValueError(f"{source} has no labels: lines must be 'path TAB label'")
        return [clips.class_names[label] if clips.class_names else str(label + 1) for label in clips.labels]
    path = Path(source).parent / "captions.jsonl"
    name_of = read_attribute(path, attribute)
    if missing := [key for key in clips.keys if key not in name_of]:
        raise ValueError(f"{path} does not give the {attribute} of {len(missing)} clips of {source}{some(missing)}")
    return [name_of[key] for key in clips.keys]


def class_indices(train: Sequence[str], test: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Class names -> indices from 0. ValueError for classes that only test clips have."""
    names = sorted(set(train))
    if unknown := sorted(set(test) - set(names)):
        raise ValueError(f"{len(unknown)} classes of test clips have no training clips{some(unknown)}")
    return torch.tensor([names.index(name) for name in train]), torch.tensor([names.index(name) for name in test])


def check_disjoint(train: ClipList, test: ClipList) -> None:
    """Raise ValueError if a test clip has the bytes of a training clip."""
    seen = {digest(path) for path in train.paths}
    if shared := [str(path) for path in test.paths if digest(path) in seen]:
        raise ValueError(f"{len(shared)} test clips are also training clips: use held-out clips{some(shared)}")


def probe_summary(report: dict[str, Any]) -> str:
    """A report as lines of text."""
    (train, test), few = report["clips"].values(), report["episodes"]
    chance = f"chance {report['chance']:.1%}, always the most common class {report['most_common']:.1%}"
    sizes = f"{len(report['classes'])} classes, {test['num_clips']} test and {train['num_clips']} training clips"
    tasks = f"{few['num']} episodes, {few['n_way']}-way {few['k_shot']}-shot; chance {few['chance']:.1%}"
    lines = [f"{report['attribute']}: {sizes}; {chance}", f"few-shot: {tasks}"]
    lines.append(f"{'':18}{'width':>6}{'nearest mean':>23}{'linear':>23}{'few-shot':>23}")
    for name, found in report["results"].items():
        cells = "".join(f"{_cell(**found.get(key, {})):>23}" for key in ("nearest_mean", "linear", "few_shot"))
        lines.append(f"{name:18}{found['width']:>6}{cells}")
    return "\n".join(lines)


def _cell(accuracy: float | None = None, interval95: Sequence[float] = (), **_: Any) -> str:
    low, high = (100 * bound for bound in interval95 or (0, 0))
    return "-" if accuracy is None else f"{accuracy:.1%} ({low:.1f} to {high:.1f})"
