"""Evaluation of tokenizers and generators: I3D features, Frechet distances, and what `sweettok eval` measures."""

from sweettok.eval.frechet import FeatureStats, frechet_distance
from sweettok.eval.i3d import I3D
from sweettok.eval.tracker import Track, track

__all__ = ["I3D", "FeatureStats", "Track", "frechet_distance", "track"]
