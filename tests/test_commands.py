"""What the commands do with problems."""

import pytest

from sweettok.commands import report_errors


@pytest.mark.parametrize(
    ("result", "status", "told"),
    [
        (None, 0, ""),
        (3, 3, ""),
        (ValueError("no such thing"), 1, "error: no such thing\n"),
        (FileNotFoundError("no such file"), 1, "error: no such file\n"),
        (KeyboardInterrupt(), 130, "\nstopped\n"),
    ],
)
def test_problems_are_a_line_and_a_status(result, status, told, capsys):
    def work():
        if isinstance(result, BaseException):
            raise result
        return result

    assert report_errors(work) == status and capsys.readouterr().err == told


def test_a_mistake_of_the_program_keeps_its_trace():
    with pytest.raises(KeyError):
        report_errors(lambda: {}["absent"])
