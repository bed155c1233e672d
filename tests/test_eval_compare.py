"""Reports side by side: refused when protocols differ; tables and plots of folders."""

import json
import sys

import pytest
from PIL import Image

from sweettok.cli.main import main
from sweettok.eval.compare import compare, table
from sweettok.eval.protocol import PRESETS
from sweettok.eval.report import FORMAT, read_report, write_json

PROTOCOL = PRESETS["exact"].filled(stride=1, num_real=9, num_fake=9, frames=9, height=32, width=32)


def write(path, protocol=PROTOCOL, kind="rfvd", bits=100.0, psnr=20.0, fvd=None):
    results = {"bits_per_clip": bits, "scores": {"reconstruction": {"psnr": {"mean": psnr}}}}
    if fvd is not None:
        results[kind] = {"value": fvd}
    report = {
        "format": FORMAT,
        "kind": kind,
        "protocol": protocol.to_dict(),
        "protocol_hash": protocol.hash,
        "results": results,
    }
    write_json(path, report)
    return path


def test_two_reports_of_one_protocol(tmp_path):
    one, other = write(tmp_path / "a.json", fvd=30.0), write(tmp_path / "b.json", psnr=22.5, fvd=20.0)
    text = compare(one, other)
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[1:]}
    assert rows["psnr"] == ["20.000", "22.500", "+2.500"] and rows["rfvd"] == ["30.000", "20.000", "-10.000"]
    assert set(rows) == {"bits_per_clip", "psnr", "rfvd"}


def test_differences_have_intervals(tmp_path):
    """Paired where both reports are of the same clips: a constant difference is then certain."""
    scores = {"a": [10.0, 20.0, 30.0], "b": [11.0, 21.0, 31.0], "c": [11.0, 21.0, 31.0]}
    for name, values in scores.items():
        path = write(tmp_path / f"{name}.json", psnr=sum(values) / 3)
        report = json.loads(path.read_text())
        keys = "xyz" if name == "c" else "uvw"
        report["results"]["clips"] = [{"key": key, "psnr": value} for key, value in zip(keys, values, strict=True)]
        write_json(path, report)
    assert "+1.000 +- 0.000 (paired)" in compare(tmp_path / "a.json", tmp_path / "b.json")
    half = 1.96 * 10 / 3**0.5 * 2**0.5
    assert f"+1.000 +- {half:.3f} (not paired)" in compare(tmp_path / "a.json", tmp_path / "c.json")


def test_other_protocols_are_refused_by_their_fields(tmp_path, capsys):
    one = write(tmp_path / "a.json")
    other = write(tmp_path / "b.json", PROTOCOL.filled(stride=4, quantize="floor"))
    with pytest.raises(ValueError, match="must not be compared: stride 1 . 4, quantize round . floor"):
        compare(one, other)
    assert main(["eval", "compare", str(one), str(other)]) == 2
    captured = capsys.readouterr()
    assert "stride 1 | 4" in captured.err and "psnr" not in captured.out
    assert main(["eval", "compare", str(one), str(other), "--force"]) == 0
    printed = capsys.readouterr().out
    assert "psnr" in printed and "stride" in printed and printed.count("PROTOCOL DIFFERS") == 2
    with pytest.raises(ValueError, match="is a report of rfvd, .*of gfvd"):
        compare(one, write(tmp_path / "c.json", kind="gfvd"), force=True)


def test_only_whole_reports_are_read(tmp_path):
    path = write(tmp_path / "a.json")
    assert read_report(path)["kind"] == "rfvd"
    for change, message in (
        (lambda r: r["protocol"].update(stride=2), "does not match"),
        (lambda r: r["protocol"].pop("stride"), "does not match|missing"),
        (lambda r: r["protocol"].update(colour="red"), "colour"),
        (lambda r: r.update(format=1), "format is 1, this version reads 3; measure again"),
        (lambda r: r.pop("results"), "it has no entry 'results'"),
        (lambda r: r.update(results=None), "b.json is no report"),
        (lambda r: r.update(kind=None), "its kind is None, expected rfvd or gfvd"),
    ):
        report = json.loads(path.read_text())
        change(report)
        if "stride" not in report["protocol"]:
            report["protocol_hash"] = "0"
        write_json(tmp_path / "b.json", report)
        with pytest.raises(ValueError, match=message):
            read_report(tmp_path / "b.json")
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(ValueError, match="b.json is no report"):
        read_report(tmp_path / "b.json")
    with pytest.raises(FileNotFoundError, match="no report at"):
        read_report(tmp_path / "none.json")


def test_table_and_plot(tmp_path, capsys):
    write(tmp_path / "small" / "a.json", bits=100.0, fvd=30.0)
    write(tmp_path / "large" / "a.json", bits=4000.0, fvd=20.0)
    write(tmp_path / "other.json", PROTOCOL.filled(stride=2), fvd=1.0)
    (tmp_path / "notes.json").write_text('{"no": "report"}')
    assert main(["eval", "table", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and [line.split(" | ")[0] for line in lines[2:5]] == ["| large/a", "| other", "| small/a"]
    assert "| 4000.000 | 20.000 | - | - | - | 20.000 | - |" in lines[2]
    assert f"plot of rfvd in {tmp_path}/table.png: 2 of 3 reports, those of protocol {PROTOCOL.hash[:8]}" == lines[5]
    assert Image.open(tmp_path / "table.png").size == (900, 600)


def test_a_table_names_reports_that_it_skips(tmp_path, capsys):
    write(tmp_path / "a.json")
    old = json.loads((tmp_path / "a.json").read_text()) | {"format": 2}
    write_json(tmp_path / "old.json", old)
    assert main(["eval", "table", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 5 and lines[2].startswith("| a |")
    assert lines[3].startswith(f"skipped: {tmp_path}/old.json is no report") and "format is 2" in lines[3]
    (tmp_path / "a.json").unlink()
    assert main(["eval", "table", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "holds no reports of `sweettok eval`; " in error and "format is 2" in error and error.count("\n") == 1


def test_a_plot_does_not_replace_other_files(tmp_path, capsys):
    report = write(tmp_path / "a.json")
    for plot, message in ((report, "ends in .png"), (tmp_path / "b.png", "choose another name")):
        (tmp_path / "b.png").write_text("not a picture")
        before = plot.read_bytes()
        assert main(["eval", "table", str(tmp_path), "--plot", str(plot)]) == 2
        assert message in capsys.readouterr().err and plot.read_bytes() == before


def test_without_matplotlib_a_table_says_what_to_install(tmp_path, capsys, monkeypatch):
    write(tmp_path / "a.json")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["eval", "table", str(tmp_path)]) == 1
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "error: plots need matplotlib: pip install 'sweettok[plot]'\n"


def test_plot_falls_back_to_psnr_and_to_nothing(tmp_path):
    write(tmp_path / "a.json", fvd=3.0)
    write(tmp_path / "b.json")
    assert "plot of psnr" in table(tmp_path, tmp_path / "t.png")
    write(tmp_path / "c" / "d.json", bits=None)
    assert "no plot: no report has bits" in table(tmp_path / "c", tmp_path / "u.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no reports of `sweettok eval`"):
        table(tmp_path / "empty", tmp_path / "v.png")
