"""Deterministic weights for parity checks: the same numbers from a state dict's names and shapes alone.

A reference run and this project's run fill their models by this one rule, so outputs can be compared
without shipping hundreds of megabytes of weights.

Rule, for a floating-point entry `name` of shape `s` and a seed `k`:
    g = numpy.random.RandomState((zlib.crc32(name.encode()) + k) % 2**32).standard_normal(s)
    1-D and 0-D entries: 1 + 0.1*g where `name` ends in one of SCALES, else 0.1*g
                         (running_var: 1 + 0.1*|g|)
    others:              g / sqrt(prod(s[1:]))
Integer entries are left as the model made them. A recipe may list gains, {ending: factor}: an entry
whose name ends in `ending` is multiplied by `factor` after the rule (the first match counts).
"""

import zlib

import numpy as np

SCALES = ("weight", "gamma", "q_scale", "k_scale")


def value(name: str, shape, seed: int = 0) -> np.ndarray:
    """The float32 array of `shape` that belongs to state-dict entry `name`."""
    rng = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    g = rng.standard_normal(tuple(shape))
    if len(shape) <= 1:
        start = 1.0 if name.endswith(("running_var", *SCALES)) else 0.0
        g = start + 0.1 * (np.abs(g) if name.endswith("running_var") else g)
    else:
        g = g / np.sqrt(np.prod(shape[1:]))
    return np.asarray(g, dtype=np.float32)


def fill(shapes: dict, seed: int = 0, gains: dict | None = None) -> dict:
    """{name: float32 array} for a {name: shape} mapping of floating-point entries."""
    arrays = {}
    for name, shape in shapes.items():
        factor = next((f for end, f in (gains or {}).items() if name.endswith(end)), 1.0)
        arrays[name] = value(name, shape, seed) * np.float32(factor)
    return arrays
