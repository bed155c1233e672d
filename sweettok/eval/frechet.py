"""Frechet distance of two sets of features, modelled as Gaussians (Heusel et al. 2017; Unterthiner et al. 2018).

FD = |m1 - m2|^2 + Tr(C1) + Tr(C2) - 2 Tr((C1 C2)^(1/2)). Letters: N samples, D feature width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

ROOTS = ("svd", "sqrtm")
DTYPES = {"float64": torch.float64, "float32": torch.float32}


@dataclass
class FeatureStats:
    """Count, mean and scatter (sum of outer products around the mean) of features, in float64 on the CPU.

    `a.merge(b)` combines the statistics of two parts of a set, for example from several processes.
    """

    count: int = 0
    mean: Tensor | None = None  # (D,)
    scatter: Tensor | None = None  # (D, D)

    def update(self, features: Tensor) -> None:
        """Add features (N, D). ValueError for another shape or width, or values that are not finite."""
        features = _matrix(features, "features").to("cpu", torch.float64)
        if not len(features):
            return
        mean = features.mean(0)
        centred = features - mean
        self._add(FeatureStats(len(features), mean, centred.T @ centred))

    def merge(self, other: FeatureStats) -> FeatureStats:
        """Statistics of both sets together, as a new object."""
        both = FeatureStats(self.count, self.mean, self.scatter)
        if other.count:
            both._add(other)
        return both

    def _add(self, other: FeatureStats) -> None:
        if self.mean is None:
            self.count, self.mean, self.scatter = other.count, other.mean, other.scatter
            return
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"features are {len(other.mean)} wide, those before were {len(self.mean)} wide")
        count = self.count + other.count
        step = other.mean - self.mean
        self.scatter = self.scatter + other.scatter + torch.outer(step, step) * (self.count * other.count / count)
        self.mean = self.mean + step * (other.count / count)
        self.count = count

    def covariance(self, ddof: int = 1) -> Tensor:
        """float64 (D, D): the scatter divided by count - ddof."""
        return self.scatter / (self.count - ddof)


def frechet_distance(
    real: Tensor | np.ndarray | FeatureStats,
    fake: Tensor | np.ndarray | FeatureStats,
    ddof: int = 1,
    dtype: str = "float64",
    root: str = "svd",
) -> float:
    """Frechet distance of two sets, given as features (N, D) or as their statistics.

    Args:
        ddof: covariances are divided by N - ddof.
        dtype: "float64", or "float32" as in the release, with an error of about 0.03.
        root: matrix root. "svd" is that of the release; in float64, if both sets have fewer samples than features, the
            trace is computed exactly as a nuclear norm. "sqrtm" is scipy's (float64 only), off by 1e-4 if N <= D.

    Raises:
        ValueError: fewer than 2 samples, features of different widths, or values that are not finite.
    """
    if ddof not in (0, 1):
        raise ValueError(f"ddof must be 0 or 1, got {ddof}")
    if dtype not in DTYPES or root not in ROOTS or (dtype, root) == ("float32", "sqrtm"):
        raise ValueError(f"dtype must be float64, or float32 with root svd; root svd or sqrtm; got {dtype!r}, {root!r}")
    sides = [_side(x, name, DTYPES[dtype]) for x, name in ((real, "real"), (fake, "fake"))]
    widths = [x.shape[1] if isinstance(x, Tensor) else len(x.mean) for x in sides]
    if widths[0] != widths[1]:
        raise ValueError(f"real features are {widths[0]} wide and fake features {widths[1]}")
    (mean_r, cov_r), (mean_f, cov_f) = (_mean_and_covariance(x, ddof, DTYPES[dtype]) for x in sides)
    if root == "sqrtm":
        trace = float(np.real(np.trace(scipy.linalg.sqrtm(cov_f.numpy() @ cov_r.numpy()))))
    elif dtype == "float64" and all(isinstance(x, Tensor) and len(x) < x.shape[1] for x in sides):
        trace = _nuclear_trace(*sides, ddof)
    else:
        factor = _svd_root(cov_f)
        trace = _svd_root(factor @ cov_r @ factor).trace().item()
    distance = (mean_f - mean_r).square().sum() + cov_f.trace() + cov_r.trace()
    return distance.item() - 2 * trace


def _matrix(features: Tensor | np.ndarray, name: str) -> Tensor:
    features = torch.as_tensor(features).detach()
    if features.ndim != 2 or not features.dtype.is_floating_point:
        got = f"{features.dtype} {tuple(features.shape)}"
        raise ValueError(f"{name} must be a float matrix (samples, width), got {got}")
    if not features.isfinite().all():
        raise ValueError(f"{name} hold values that are not finite")
    return features


def _side(given: Tensor | np.ndarray | FeatureStats, name: str, dtype: torch.dtype) -> Tensor | FeatureStats:
    if not isinstance(given, FeatureStats):
        given = _matrix(given, f"{name} features").to("cpu", dtype)
    count = given.count if isinstance(given, FeatureStats) else len(given)
    if count < 2:
        raise ValueError(f"a Frechet distance needs at least 2 samples per side, got {count} {name}")
    return given


def _mean_and_covariance(side: Tensor | FeatureStats, ddof: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    if isinstance(side, FeatureStats):
        return side.mean.to(dtype), side.covariance(ddof).to(dtype)
    mean = side.mean(0)
    centred = side - mean
    return mean, centred.T @ centred / (len(side) - ddof)


def _svd_root(matrix: Tensor) -> Tensor:
    """Root of a symmetric positive matrix; as in TF-GAN and the release, singular values below 1e-10 are kept."""
    left, sizes, right = torch.linalg.svd(matrix)
    return left @ torch.diag(torch.where(sizes < 1e-10, sizes, sizes.sqrt())) @ right


def _nuclear_trace(first: Tensor, second: Tensor, ddof: int) -> float:
    """Tr((C1 C2)^(1/2)) without forming the covariances, which are singular when samples are few."""
    cross = (first - first.mean(0)) @ (second - second.mean(0)).T
    return torch.linalg.svdvals(cross).sum().item() / math.sqrt((len(first) - ddof) * (len(second) - ddof))
