"""Evaluation: I3D, Frechet distances, pixel metrics, codebook usage; `python -m sweettok.eval` runs them."""

from importlib import import_module

_PUBLIC = {
    "I3D": "sweettok.eval.i3d",
    "FeatureStats": "sweettok.eval.frechet",
    "frechet_distance": "sweettok.eval.frechet",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str):
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sweettok.eval' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
