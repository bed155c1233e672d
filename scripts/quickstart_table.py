"""Print the PSNR of every stage beside two baselines, from quickstart's reports; fail if a stage learned too little.

    python scripts/quickstart_table.py outputs/tiny
"""

import json
import sys
from pathlib import Path

MARGIN = 2.0  # dB by which the tokenizer must beat both baselines


def main(folder: str) -> int:
    scores = {
        stage: json.loads((Path(folder) / f"{stage}.json").read_text())["results"]["scores"]
        for stage in ("proxy", "stage1", "stage2")
    }
    psnr = {
        "copy of the first frame": scores["stage2"]["first frame"]["psnr"]["mean"],
        "mean frame of each clip": scores["stage2"]["mean frame"]["psnr"]["mean"],
        "stage 1, argmax codes": scores["stage1"]["reconstruction"]["psnr"]["mean"],
        "stage 2": scores["stage2"]["reconstruction"]["psnr"]["mean"],
        "proxy (upper bound of stage 1)": scores["proxy"]["reconstruction"]["psnr"]["mean"],
    }
    print("\nPSNR on held-out clips, dB")
    for name, value in psnr.items():
        print(f"  {name:32} {value:6.2f}")
    baseline = max(psnr["copy of the first frame"], psnr["mean frame of each clip"])
    gain, gain2 = psnr["stage 2"] - baseline, psnr["stage 2"] - psnr["stage 1, argmax codes"]
    print(f"stage 2 is {gain:+.2f} dB from the better baseline and {gain2:+.2f} dB from stage 1")
    if gain < MARGIN or gain2 <= 0:
        print(f"error: expected at least +{MARGIN:.0f} dB and more than 0 dB", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
