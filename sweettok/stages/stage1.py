"""Stage 1: encoder, codebooks and decoder are trained to predict the proxy's codes of a clip."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING
from torch import Tensor

from sweettok import convert
from sweettok.data.config import DataConfig
from sweettok.hub import find_shipped
from sweettok.stages.codes import CodeLossConfig, CodeTask
from sweettok.stages.inputs import Inputs
from sweettok.tokenizer.config import TokenizerConfig
from sweettok.tokenizer.model import SweetTok
from sweettok.tokenizer.release import TOKENIZER, check_published
from sweettok.train.config import OptimizerConfig, TrainConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stage1LossConfig(CodeLossConfig):
    """Weights of the loss terms; the defaults are the release's."""

    # Squared error of two linear layers: from each spatial query, the proxy's code vector of the first slice at its
    # place; from each temporal query, the changes of the code vectors at its position. Encoder and codebooks learn from
    # it before the decoder is trained. Not in the release.
    auxiliary_weight: float = 0.0


@dataclass(frozen=True)
class Stage1Run:
    """Train encoder, codebooks and decoder to predict the proxy's codes."""

    stage: str = "stage1"
    proxy: str = MISSING  # trained proxy: a folder, or the published file
    prior: str = MISSING  # folder with the word graphs
    init: str | None = None  # weights to start from: a folder, or a published file
    # Fit the initial weights to the proxy and to some clips, which saves thousands of steps: the head starts as
    # similarities to the proxy's codes, and latents and word codes have one distribution. With `init`, this applies to
    # the weights that `init` does not hold.
    warm_start: bool = False
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: Stage1LossConfig = field(default_factory=Stage1LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


class Stage1Task(CodeTask):
    """Trains the tokenizer without its pixel decoder."""

    name = "stage1"
    run_class = Stage1Run

    def __init__(self, run: Stage1Run, inputs: Inputs | None = None):
        inputs = inputs or Inputs()
        if run.loss.auxiliary_weight > 0 and run.tokenizer.compression == "flat_queries":
            raise ValueError(
                "loss.auxiliary_weight needs tokens that belong to positions, and those of "
                "tokenizer.compression flat_queries do not: set it to 0"
            )
        super().__init__(run, inputs.prior(run.prior, run.tokenizer.words), inputs)
        self.open_clips(inputs, run.data, run.tokenizer.proxy)
        found = start_from(self.model, run.init) if run.init and inputs.readable else {}
        trained = {name for name, param in self.model.named_parameters() if param.requires_grad}
        if run.warm_start and trained <= found.keys():
            raise ValueError("init holds all weights, so warm_start has no effect: leave one of them out")
        if run.warm_start and inputs.readable:
            self.warm_start()
        self.model.load_state_dict({**self.model.state_dict(), **found})
        self.make_optimizer(auxiliary=run.loss.auxiliary_weight > 0)

    @classmethod
    def saved_model(cls, run: Stage1Run, inputs: Inputs) -> SweetTok:
        return SweetTok(run.tokenizer, inputs.prior(run.prior, run.tokenizer.words))


def start_from(model: SweetTok, path: str) -> dict[str, Tensor]:
    """State-dict entries of `model` from another tokenizer or spatial branch, without its pixel decoder.

    Args:
        path: a saved model's folder, or a published file. ValueError if its sizes or words differ.
    """
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("pixel_decoder.")}
    path = str(find_shipped(path))
    if Path(path).is_dir():
        other = SweetTok.from_pretrained(path)
        ours, theirs = model.assets()["words"], other.assets()["words"]
        changed = [branch for branch in theirs if theirs[branch] != ours[branch]]
        if changed:
            raise ValueError(f"{path} was trained with other {' and '.join(changed)} words: use the same prior")
        found = {name: value for name, value in other.state_dict().items() if name in state}
        wrong = sorted(name for name, value in found.items() if value.shape != state[name].shape)
        if wrong:
            raise ValueError(f"{path} is of other sizes than tokenizer: {len(wrong)} entries differ, as {wrong[0]}")
    elif not Path(path).exists():
        raise FileNotFoundError(
            f"no initial weights at {path}: train them with run_train_spatial.sh, get the published file "
            "(checkpoints/README.md), or set init=null"
        )
    else:
        check_published(model.config)
        released = convert.read_weights(path)
        released = {name: value for name, value in released.items() if not name.startswith("pixel_")}
        found = convert.import_weights(state, released, TOKENIZER, partial=True)
    logger.info("starting from %s: %d of %d entries", path, len(found), len(state))
    return found
