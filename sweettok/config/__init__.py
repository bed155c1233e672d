"""Every setting of the library as typed, frozen dataclasses, and the functions that read them.

A YAML file holds only what differs from the defaults, which are the release's values. Unknown keys are errors,
dotted overrides (`train.max_steps=100`) work on every command line, and `???` marks what has no default.
"""

from sweettok.config.models import (
    BlockConfig,
    DiscriminatorConfig,
    GeneratorConfig,
    ProxyConfig,
    SamplingConfig,
    TokenizerConfig,
    WordsConfig,
)
from sweettok.config.reading import build, load_config, to_dict
from sweettok.config.runs import (
    RUNS,
    AdversarialConfig,
    CodebookConfig,
    DataConfig,
    GeneratorLossConfig,
    GeneratorRun,
    OptimizerConfig,
    PerceptualConfig,
    ProxyLossConfig,
    ProxyRun,
    RunConfig,
    SpatialLossConfig,
    SpatialRun,
    Stage1LossConfig,
    Stage1Run,
    Stage2LossConfig,
    Stage2Run,
    TokenDataConfig,
    TrainConfig,
)

__all__ = [
    "AdversarialConfig", "BlockConfig", "CodebookConfig", "DataConfig", "DiscriminatorConfig", "GeneratorConfig",
    "GeneratorLossConfig", "GeneratorRun", "OptimizerConfig", "PerceptualConfig", "ProxyConfig", "ProxyLossConfig",
    "ProxyRun", "RUNS", "RunConfig", "SamplingConfig", "SpatialLossConfig", "SpatialRun", "Stage1LossConfig",
    "Stage1Run", "Stage2LossConfig", "Stage2Run", "TokenDataConfig", "TokenizerConfig", "TrainConfig", "WordsConfig",
    "build", "load_config", "to_dict",
]  # fmt: skip
