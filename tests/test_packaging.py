"""What `pip install .` installs: the package, its configurations and the command."""

import ast
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"PIL": "pillow", "open_clip": "open_clip_torch", "yaml": "pyyaml"}  # module -> package, where they differ
BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The contents of the wheel, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("sweettok", "configs"):
        shutil.copytree(ROOT / name, folder / "source" / name, symlinks=True, ignore=shutil.ignore_patterns("*.pyc"))
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)], cwd=folder / "source", capture_output=True, text=True, check=True
    )
    zipfile.ZipFile(folder / done.stdout.split()[-1]).extractall(folder / "installed")
    return folder / "installed"


def test_the_wheel_is_complete(installed):
    there = {path.relative_to(installed).as_posix() for path in installed.rglob("*")}
    models = [path for path in (ROOT / "sweettok" / "pretrained").rglob("*") if path.is_file()]
    expected = [*(ROOT / "sweettok").rglob("*.py"), *(ROOT / "configs").rglob("*.yaml"), *models]
    names = {path.relative_to(ROOT).as_posix() for path in expected}
    assert {name if name.startswith("sweettok/") else f"sweettok/{name}" for name in names} <= there
    assert "sweettok/py.typed" in there and not (installed / "tests").exists() and not (installed / "configs").exists()
    assert "sweettok = sweettok.cli.main:main" in next(installed.glob("*.dist-info/entry_points.txt")).read_text()


def test_everything_imported_is_required():
    """In requirements.txt, or in an extra."""
    pyproject = (ROOT / "pyproject.toml").read_text()
    extras = re.search(r"^\[project.optional-dependencies\]\n(.*?)^\[", pyproject, re.MULTILINE | re.DOTALL)[1]
    lines = (ROOT / "requirements.txt").read_text().splitlines() + re.findall(r'"([^"]+)"', extras)
    listed = {re.match(r"[\w-]+", line)[0].lower() for line in lines}
    found = set()
    for path in (ROOT / "sweettok").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
    # For type checkers alone, and what loads a part of this package, but is never needed.
    found -= {*sys.stdlib_module_names, "sweettok", "typing_extensions", "lmms_eval"}
    assert {PACKAGES.get(name, name) for name in found} <= listed


def test_configurations_are_found_from_any_folder(installed, tmp_path):
    """Those of the package, unless the working folder has a file of this name."""
    code = "from sweettok.config import find_config; print(find_config('configs/tiny/proxy.yaml').resolve())"

    def found() -> Path:
        command = [sys.executable, "-c", code]
        environment = {"PYTHONPATH": str(installed)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
        return Path(done.stdout.strip())

    assert found() == installed / "sweettok/configs/tiny/proxy.yaml"
    (tmp_path / "configs/tiny").mkdir(parents=True)
    (tmp_path / "configs/tiny/proxy.yaml").touch()
    assert found() == tmp_path / "configs/tiny/proxy.yaml"
