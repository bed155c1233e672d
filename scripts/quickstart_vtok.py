"""Parts of the quickstart of VTok that are no commands.

python scripts/quickstart_vtok.py oracle outputs/vtok     clips of the triplets' scenes in `true`, and in `oracle` what
                                                          the video decoder makes of their true tokens
python scripts/quickstart_vtok.py table outputs/vtok      results of all stages; exits with 1 if one is too low
"""

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

import torch

from sweettok import PixelFlow, VTok
from sweettok.data.writer import write_video
from sweettok.eval import tvalign
from sweettok.inference import prompts
from sweettok.pixels import to_uint8

BATCH, FRAMES, SIZE, FPS = 16, 25, 32, 24
# A run of these configurations had 0.86, 0.31 (after 600 steps) and 0.06. Videos have no bound: few are right.
RETRIEVAL = 0.5  # least share of frames whose caption is found among 32; guessing finds 0.03
STATES = 0.5  # most loss of the decoder with states, relative to that without
ANSWERS = 0.02  # least gain of answers with videos over those without


def oracle(folder: str) -> int:
    out = Path(folder)
    rows = tvalign.read_triplets(out / "triplets.jsonl")
    scenes = [scene for _, scene in tvalign.triplets(len(rows), rows[0]["seed"])]
    tokenizer = VTok.from_pretrained(out / "encoder/final")
    decoder = PixelFlow.from_pretrained(out / "decoder/final").eval()
    for start in range(0, len(rows), BATCH):
        part = range(start, min(start + BATCH, len(rows)))
        drawn = torch.stack([scenes[number].draw(FRAMES, SIZE) for number in part])
        states = decoder.from_tokens(tokenizer.encode(drawn, FPS))
        made = to_uint8(decoder.sample(states, FRAMES, SIZE, indices=part))
        for number, *clips in zip(part, drawn, made, strict=True):
            for kind, clip in zip(("true", "oracle"), clips, strict=True):
                write_video(out / kind / f"{rows[number]['id']}.mp4", clip, FPS, full_chroma=True)
    for kind in ("true", "oracle"):
        shown = rows[: prompts.SHEET_ROWS]
        videos = [out / kind / f"{row['id']}.mp4" for row in shown]
        prompts.write_sheet(out / kind / prompts.SHEET, videos, [row["prompt"] for row in shown])
    return 0


def majority(scenes: Path) -> dict[str, float]:
    """Accuracy on held-out questions, by skill, of the answer of each kind that is most frequent in training."""
    counts, right = defaultdict(Counter), defaultdict(list)
    lines = [json.loads(line) for line in (scenes / "questions.jsonl").read_text().splitlines()]
    held_out = {line.split("\t")[0].removesuffix(".mp4") for line in (scenes / "val.txt").read_text().splitlines()}
    for line in lines:
        if line["key"] not in held_out:
            counts[line["kind"]][line["answer"]] += 1
    for line in lines:
        if line["key"] in held_out:
            best = counts[line["kind"]].most_common(1)[0][0]
            right["all"].append(line["answer"] == best)
            right[line["skill"]].append(line["answer"] == best)
    return {skill: sum(found) / len(found) for skill, found in right.items()}


def last(folder: Path) -> dict[str, float]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if any(name.startswith("eval/") for name in line)][-1]


def table(folder: str) -> int:
    out = Path(folder)
    encoder, decoder = last(out / "encoder"), last(out / "decoder")
    retrieval, readout = encoder["eval/retrieval"], encoder["eval/readout_accuracy"]
    flow, without = decoder["eval/flow_loss"], decoder["eval/flow_loss_without_states"]
    print(f"\nimage encoder: own caption of held-out frames found among 32: {retrieval:.1%} (guessing 3.1%)")
    print(
        f"  colours and shapes read from its features: {readout:.1%} (majority {encoder['eval/readout_majority']:.1%})"
    )
    print(f"video decoder: flow loss of held-out clips {flow:.4f}, without their tokens {without:.4f}")

    def rows(name: str) -> dict[str, float]:
        results = json.loads((out / f"{name}.json").read_text())["results"]
        skills = {skill: found["mean"] for skill, found in results["skills"].items()}
        return {"all": results["accuracy"]["mean"], **skills, "chance": results["chance"]}

    answers, blind, guess = rows("qa"), rows("qa_blind"), majority(out / "scenes")
    judged = {kind: rows(f"tvalign_{kind}") for kind in ("predicted", "oracle", "true")}
    print("\n                     questions about held-out clips       TV-Align-mini, videos judged by rules")
    print("                     answers   blind   majority           predicted   oracle   true")
    for skill in [name for name in answers if name != "chance"]:
        seen = f"{answers[skill]:7.1%} {blind[skill]:7.1%} {guess[skill]:10.1%}"
        made = f"{judged['predicted'][skill]:11.1%} {judged['oracle'][skill]:8.1%} {judged['true'][skill]:6.1%}"
        print(f"  {skill:18} {seen} {made:>38}")
    print(f"  {'chance':18} {answers['chance']:7.1%} {judged['oracle']['chance']:48.1%}")
    checks = {
        f"retrieval of at least {RETRIEVAL:.0%}": retrieval >= RETRIEVAL,
        f"a decoder's loss of at most {STATES:.0%} of that without tokens": flow <= STATES * without,
        f"answers {ANSWERS:.0%} above blind ones": answers["all"] >= blind["all"] + ANSWERS,
    }
    for text in [text for text, reached in checks.items() if not reached]:
        print(f"error: expected {text}", file=sys.stderr)
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit({"oracle": oracle, "table": table}[sys.argv[1]](sys.argv[2]))
