"""The first 20 steps of every stage of SweetTok, trained by its command, have the losses on file.

    python tests/test_golden_losses.py [FILE]      writes tests/golden_losses.json anew, where other losses are meant

Each stage learns from what the one before made here; discriminators join halfway. The clips are drawn by rule and
stored without loss, so that no encoder has a say.

On a machine that rounds as the one that wrote the file (`ROUNDING`, of a few operations), all runs on one thread give
the same losses bit for bit, two threads others by 4e-6 of a loss; a learning rate 1% higher in one stage changes its
losses by 9e-4 to 7e-3. Elsewhere (measured with AVX2 and SSE instead of AVX-512) codes that are all but equally near
come out the other way and losses differ by up to 8e-3: there only a larger change is seen.
"""

import hashlib
import json
import re
import sys
import tempfile
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from accelerate.state import AcceleratorState
from stages import command, log_lines, prepare, tokenize

from sweettok.data import synthetic_files
from sweettok.data.writer import write_video

GOLDEN = Path(__file__).with_name("golden_losses.json")
STAGES = ("proxy", "spatial", "stage1", "stage2", "generator")  # those of SweetTok
TOLERANCE, ELSEWHERE = 5e-5, 3e-2  # relative
STEPS = 20
SETTINGS = [f"train.max_steps={STEPS}", f"train.save_every={STEPS}", "train.sample_every=0", "train.eval_every=0"]
GAME = [f"loss.adversarial.start_step={STEPS // 2}"]


def rounding() -> str:
    """Digest of what a convolution, a product and a softmax of fixed numbers give here."""
    generator = torch.Generator().manual_seed(0)
    clip = torch.randn(2, 16, 3, 8, 8, generator=generator)
    kernel = torch.randn(16, 16, 3, 3, 3, generator=generator)
    rows = torch.nn.functional.conv3d(clip, kernel).flatten(2)
    parts = rows, rows @ rows.mT, rows.softmax(-1)
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()[:12]


def train(folder: Path, **stages: list[str]) -> None:
    """Train stages on one thread; each with settings beyond those of its file."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for stage, settings in stages.items():
            AcceleratorState._reset_state(reset_partial_state=True)
            assert command(["train", str(folder / f"{stage}.yaml"), *SETTINGS, *settings]) == 0
    finally:
        torch.set_num_threads(threads)


def losses(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Train every stage in `folder`; returns {stage: {term: its values in the steps that have it}}."""
    with patch.object(synthetic_files, "write_video", partial(write_video, lossless=True)):
        prepare(folder)
    train(folder, proxy=GAME, spatial=[], stage1=[])
    tokenize(folder, folder / "tokens")
    train(folder, stage2=GAME, generator=[f"tokenizer={folder / 'stage1' / 'final'}"])
    found = {}
    for stage in STAGES:
        lines = log_lines(folder / stage)
        assert [line["step"] for line in lines] == [*range(1, STEPS + 1)]
        terms = sorted({key for line in lines for key in line if re.search("loss|weighted|cross_entropy", key)})
        found[stage] = {term: [line[term] for line in lines if term in line] for term in terms}
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return losses(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("stage", STAGES)
def test_losses_are_those_on_file(found, stage):
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    tolerance = TOLERANCE if rounding() == golden["rounding"] else ELSEWHERE
    expected = golden["losses"][stage]
    assert found[stage].keys() == expected.keys()
    for term, values in expected.items():
        assert found[stage][term] == pytest.approx(values, rel=tolerance), term


def write(path: Path) -> None:
    """Train, and write the file, to seven digits, with a line for each term."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        golden = {
            stage: {term: [float(f"{value:.7g}") for value in values] for term, values in terms.items()}
            for stage, terms in losses(Path(folder)).items()
        }
    facts = {"torch": torch.__version__, "rounding": rounding()}
    text = json.dumps({**facts, "losses": golden}, indent=1)
    text = re.sub(r"\[[^\]]*\]", lambda match: " ".join(match[0].split()), text)
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else GOLDEN)
