"""Reports beside each other: refused when protocols differ; tables and plots of folders."""

import json

import numpy as np
import pytest
from PIL import Image

from sweettok.eval.__main__ import main
from sweettok.eval.compare import compare, read_report, table
from sweettok.eval.plot import scatter, ticks
from sweettok.eval.presets import PRESETS
from sweettok.eval.report import write_json

PROTOCOL = PRESETS["exact"].filled(num_real=9, num_fake=9, frames=9, height=32, width=32)


def write(path, protocol=PROTOCOL, kind="rfvd", bits=100.0, psnr=20.0, fvd=None):
    results = {"bits_per_clip": bits, "scores": {"reconstruction": {"psnr": {"mean": psnr}}}}
    if fvd is not None:
        results[kind] = {"value": fvd}
    report = {
        "format": 2, "kind": kind, "protocol": protocol.to_dict(), "protocol_hash": protocol.hash, "results": results,
    }  # fmt: skip
    write_json(path, report)
    return path


def test_two_reports_of_one_protocol(tmp_path):
    one, other = write(tmp_path / "a.json", fvd=30.0), write(tmp_path / "b.json", psnr=22.5, fvd=20.0)
    text = compare(one, other)
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines()[1:]}
    assert rows["psnr"] == ["20.000", "22.500", "+2.500"] and rows["rfvd"] == ["30.000", "20.000", "-10.000"]
    assert set(rows) == {"bits_per_clip", "psnr", "rfvd"}


def test_other_protocols_are_refused_by_their_fields(tmp_path, capsys):
    one = write(tmp_path / "a.json")
    other = write(tmp_path / "b.json", PROTOCOL.filled(stride=4, quantize="floor"))
    with pytest.raises(ValueError, match="must not be compared:\n  stride: 1 | 4\n  quantize: round | floor"):
        compare(one, other)
    assert main(["compare", str(one), str(other)]) == 1
    captured = capsys.readouterr()
    assert "stride: 1 | 4" in captured.err and "psnr" not in captured.out
    assert main(["compare", str(one), str(other), "--force"]) == 0
    printed = capsys.readouterr().out
    assert "psnr" in printed and "stride" in printed and printed.count("PROTOCOL DIFFERS") == 2
    with pytest.raises(ValueError, match="is a report of rfvd, .*of gfvd"):
        compare(one, write(tmp_path / "c.json", kind="gfvd"), force=True)


def test_only_whole_reports_are_read(tmp_path):
    path = write(tmp_path / "a.json")
    assert read_report(path)["kind"] == "rfvd"
    for change, message in (
        (lambda r: r["protocol"].update(stride=2), "does not have the hash"),
        (lambda r: r["protocol"].pop("stride"), "does not have the hash|missing"),
        (lambda r: r["protocol"].update(colour="red"), "colour"),
        (lambda r: r.update(format=1), "format is 1, this version reads 2"),
        (lambda r: r.pop("results"), "results"),
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
    assert main(["table", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and [line.split(" | ")[0] for line in lines[2:5]] == ["| large/a", "| other", "| small/a"]
    assert "| 4000.000 | 20.000 | - | - | - | 20.000 | - |" in lines[2]
    assert f"plot of rfvd in {tmp_path}/table.png: 2 of 3 reports, those of protocol {PROTOCOL.hash[:8]}" == lines[5]
    assert Image.open(tmp_path / "table.png").size == (900, 600)


def test_plot_falls_back_to_psnr_and_to_nothing(tmp_path):
    write(tmp_path / "a.json", fvd=3.0)
    write(tmp_path / "b.json")
    assert "plot of psnr" in table(tmp_path, tmp_path / "t.png")
    write(tmp_path / "c" / "d.json", bits=None)
    assert "no plot: no report tells bits" in table(tmp_path / "c", tmp_path / "u.png")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no reports of sweettok.eval"):
        table(tmp_path / "empty", tmp_path / "v.png")


@pytest.mark.parametrize(("low", "high"), [(0, 1), (100, 4000), (20.3, 20.4), (5, 5), (-3, 7.5), (0, 0)])
def test_ticks_enclose_and_are_few(low, high):
    marks = ticks(low, high)
    assert marks[0] <= low and marks[-1] >= high and 2 <= len(marks) <= 9
    np.testing.assert_allclose(np.diff(marks), marks[1] - marks[0])


def test_points_are_where_they_belong(tmp_path):
    """More bits are farther right, higher values farther up."""
    scatter(tmp_path / "p.png", {"": (0, 0), " ": (10, 5)}, "x", "y")
    picture = np.array(Image.open(tmp_path / "p.png")).astype(int)
    blue = np.argwhere((picture[..., 2] > 150) & (picture[..., 0] < 80))
    left, right = blue[blue[:, 1] < 450], blue[blue[:, 1] >= 450]
    assert left[:, 0].mean() > right[:, 0].mean() and len(left) and len(right)
    np.testing.assert_allclose(left.mean(0), [540, 90], atol=2)
