"""The log is one line a report, each step once, whatever happened in between."""

import json
import sys
from types import SimpleNamespace

import pytest
from toy_task import toy_run

from sweettok.config import to_dict
from sweettok.train.log import Log, drop_after


def open_log(folder, step=0, **settings):
    return Log(toy_run(folder, max_steps=10, **settings), step)


def steps(folder):
    return [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_lines_and_console(tmp_path, capsys):
    log = open_log(tmp_path)
    log.write(5, {"train/loss/generator": 0.25, "train/error": 1.0, "lr/generator": 1e-4})
    log.close()
    (line,) = [json.loads(text) for text in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert line.pop("time") > 0
    assert line == {"step": 5, "train/loss/generator": 0.25, "train/error": 1.0, "lr/generator": 0.0001}
    assert capsys.readouterr().out == "step 5/10: loss/generator 0.25  lr/generator 0.0001\n"


def test_resume_drops_later_lines_and_a_cut_one(tmp_path):
    log = open_log(tmp_path)
    for step in (1, 2, 3):
        log.write(step, {"train/loss/generator": 1.0})
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "tra')
    log = open_log(tmp_path, step=2)
    log.write(3, {"train/loss/generator": 2.0})
    log.close()
    assert steps(tmp_path) == [1, 2, 3]
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["train/loss/generator"] == 2.0


def test_a_last_line_without_its_end_is_cut_even_if_it_reads(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}')
    drop_after(path, 5)
    assert path.read_text() == '{"step": 1}\n'
    drop_after(tmp_path / "missing.jsonl", 5)


def test_what_is_not_finite_is_null(tmp_path):
    log = open_log(tmp_path)
    log.write(1, {"eval/psnr": float("inf"), "eval/error": 0.0})
    log.close()
    line = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert line["eval/psnr"] is None and line["eval/error"] == 0.0


def test_other_processes_report_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sweettok.train.log.rank", lambda: 1)
    log = open_log(tmp_path, trackers=("wandb",))
    log.write(1, {"train/loss/generator": 1.0})
    log.note("unheard")
    log.advance()
    log.close()
    captured = capsys.readouterr()
    assert (captured.out, captured.err, list(tmp_path.iterdir())) == ("", "", [])


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = open_log(tmp_path, trackers=("tensorboard",))
    for step in (1, 2, 3):
        log.write(step, {"train/loss/generator": float(step)})
    log.close()
    log = open_log(tmp_path, step=1, trackers=("tensorboard",))
    log.write(2, {"train/loss/generator": 20.0})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss/generator")
    assert [(event.step, event.value) for event in events] == [(1, 1.0), (2, 20.0)]


def test_wandb_goes_on_as_the_same_run(tmp_path, monkeypatch):
    calls = []
    run = SimpleNamespace(log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("finish"))
    fake = SimpleNamespace(init=lambda **settings: calls.append(settings) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    settings = {"trackers": ("wandb",), "project": "words"}
    first = open_log(tmp_path, **settings)
    first.write(1, {"eval/error": 2.0})
    first.close()
    open_log(tmp_path, step=1, **settings).close()
    open_log(tmp_path / "other", **settings).close()
    begun, logged, finished, again, _, other, _ = calls
    run = to_dict(toy_run(tmp_path, max_steps=10, **settings))
    assert (begun["project"], begun["name"], begun["config"]) == ("words", tmp_path.name, run)
    assert begun["id"] == again["id"] != other["id"] and again["resume"] == "allow"
    assert logged == (1, {"eval/error": 2.0}) and finished == "finish"


def test_has(tmp_path):
    log = open_log(tmp_path)
    assert not log.has(1, "eval/")
    log.write(1, {"train/loss/generator": 1.0})
    log.write(2, {"eval/psnr": 1.0})
    assert (log.has(1, "eval/"), log.has(1, "train/"), log.has(2, "eval/")) == (False, True, True)


@pytest.mark.parametrize(("tracker", "module"), [("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")])
def test_a_missing_tracker_says_how_to_get_it(tmp_path, monkeypatch, tracker, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=f"pip install {tracker}"):
        open_log(tmp_path, trackers=(tracker,))
