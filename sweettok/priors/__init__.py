"""Codebook priors: word graphs, from whose vectors the codebooks are computed."""

from sweettok.priors.graph import Prior, WordGraph
from sweettok.priors.io import load_prior, save_prior

__all__ = ["Prior", "WordGraph", "load_prior", "save_prior"]
