"""Exchange with VBench: names of files, and its total score against arithmetic by hand."""

import json

import pytest

from sweettok.cli.main import main
from sweettok.eval import vbench


def test_total_by_hand():
    """Quality: seven raw scores of 0.9; semantic: nine of 0.2."""
    scores = {**dict.fromkeys(vbench.QUALITY, 0.9), **dict.fromkeys(vbench.SEMANTIC, 0.2)}
    found = vbench.combine(scores)
    assert len(vbench.DIMENSIONS) == 16
    assert [round(found[name], 5) for name in ("quality", "semantic", "total")] == [0.82973, 0.33797, 0.73138]
    del scores["scene"]
    assert vbench.combine(scores)["semantic"] is None and vbench.combine(scores)["missing"] == ["scene"]


@pytest.mark.parametrize("prompt", ["a dog", "a cat - a dog-3", "un café, 7.mp4"])
def test_names_round_trip(prompt):
    assert vbench.parse_name(vbench.file_name(prompt, 4)) == (prompt, 4)


@pytest.mark.parametrize("prompt", ["a/b", " ", "x" * 260])
def test_prompts_that_are_no_names(prompt):
    with pytest.raises(ValueError, match="cannot be the name of a file"):
        vbench.file_name(prompt, 0)


def test_export(tmp_path, capsys):
    info = [
        {"prompt_en": "a dog", "dimension": ["subject_consistency", "dynamic_degree", "motion_smoothness"]},
        {"prompt_en": "a sea", "dimension": ["background_consistency", "scene"]},
        {"prompt_en": "a lamp", "dimension": ["temporal_flickering"]},
    ]
    (tmp_path / "info.json").write_text(json.dumps(info))
    rows = []
    for number, prompt in enumerate(("a dog", "a dog", "a sea", *["a lamp"] * 27)):
        (tmp_path / f"{number}.mp4").write_bytes(bytes([number]))
        rows.append(json.dumps({"prompt": prompt, "video": f"{number}.mp4"}))
    (tmp_path / "videos.jsonl").write_text("\n".join(rows))
    arguments = ["--prompts", str(tmp_path / "info.json"), "--videos", str(tmp_path / "videos.jsonl")]
    out = tmp_path / "out"
    assert main(["eval", "vbench-export", *arguments, "--out", str(out)]) == 0
    assert "subject_consistency: 2 of 5 videos" in capsys.readouterr().out
    names = {path.relative_to(out).as_posix() for path in out.rglob("*.mp4")}
    lamps = {f"temporal_flickering/a lamp-{i}.mp4" for i in range(25)}
    assert names == {"subject_consistency/a dog-0.mp4", "subject_consistency/a dog-1.mp4", "scene/a sea-0.mp4"} | lamps
    assert (out / "subject_consistency/a dog-1.mp4").read_bytes() == bytes([1])
    with pytest.raises(ValueError, match="1 prompts are not of .*, such as 'a cat'"):
        vbench.export(tmp_path / "info.json", [("a cat", tmp_path / "0.mp4")], out)


def test_results(tmp_path, capsys):
    for dimension in vbench.DIMENSIONS:
        score = 0.9 if dimension in vbench.QUALITY else 0.2
        rows = [{"video_path": "a dog-0.mp4", "video_results": score}]
        (tmp_path / f"{dimension}_eval_results.json").write_text(json.dumps({dimension: [score, rows]}))
    out = tmp_path / "report" / "total.json"
    assert main(["eval", "vbench", str(tmp_path), "--out", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split() == ["total", "73.14%"]
    assert json.loads(out.read_text())["scores"]["total"] == pytest.approx(0.73138, abs=5e-6)
    with pytest.raises(ValueError, match="several files have results of scene"):
        vbench.read_results([tmp_path, tmp_path / "scene_eval_results.json"])
    (tmp_path / "bad.json").write_text('{"beauty": [1, []]}')
    with pytest.raises(ValueError, match=r"bad.json is not a result of VBench: no dimension 'beauty'"):
        vbench.read_results([tmp_path / "bad.json"])
