"""The shape of the package, read from its source: who imports whom, what is imported late, what is never done."""

import ast
import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

import sweettok
from sweettok.stages import STAGES

PACKAGE = Path(sweettok.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path.relative_to(PACKAGE): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}

# Parts of the package from the bottom up: a part imports from itself and from parts of lower levels.
LEVELS = [
    {"store", "config", "pixels", "segments", "convert", "distributed", "seeds"},
    {"hub", "priors", "layers"},
    {"data"},
    {"video"},
    {"proxy"},
    {"tokenizer", "vtok"},
    {"generator"},
    {"losses"},
    {"train"},
    {"stages"},
    {"inference", "words"},
    {"eval"},
    {"demo"},
    {"cli"},
]
LEVEL = {part: level for level, parts in enumerate(LEVELS) for part in parts}
EXTRAS = {"diffusers", "gradio", "httpx2", "matplotlib", "peft", "spacy", "transformers"}
LATE = EXTRAS | {"decord", "open_clip", "tensorboard", "timm", "wandb"}


def part_of(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def imports(tree: ast.AST, late: bool = True):
    """Dotted names of everything imported; with `late=False`, not inside functions. What is for types never runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        elif late or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from imports(node, late)


def ours(tree: ast.AST, late: bool = True) -> set[str]:
    """Parts of the package that a module imports; `late` as in `imports`."""
    return {name.split(".")[1] for name in imports(tree, late) if name.startswith("sweettok.")}


def calls(tree: ast.AST):
    """(called name, call) of every call: "load" for f.load(...) and for load(...)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield getattr(node.func, "attr", getattr(node.func, "id", "")), node


# ---------------------------------------------------------------------------------------------------------- imports


@pytest.mark.parametrize("path", TREES, ids=str)
def test_imports_go_down(path):
    part = part_of(path)
    if part in ("__init__", "__main__") or path.name == "__main__.py":  # an entry point may start the command
        return
    assert part in LEVEL, f"{part} is new: give it a level in LEVELS"
    wrong = {other for other in ours(TREES[path]) - {part} if LEVEL[other] >= LEVEL[part]}
    assert not wrong, f"{path} imports {sorted(wrong)}"


MODELS = {"layers", "proxy", "tokenizer", "generator"}


def test_models_know_nothing_of_the_trainer_s_libraries():
    for path, tree in TREES.items():
        if part_of(path) in MODELS:
            found = {name.split(".")[0] for name in imports(tree)} & {"accelerate", "omegaconf", "tqdm", *LATE}
            assert not found, f"{path} imports {sorted(found)}"


def test_nothing_imports_scripts_or_tests():
    for path, tree in TREES.items():
        assert not {name.split(".")[0] for name in imports(tree)} & {"scripts", "tests", "pytest"}, path


def test_heavy_libraries_are_imported_where_they_are_used():
    for path, tree in TREES.items():
        early = {part for name in imports(tree, late=False) for part in name.split(".")} & LATE
        assert not early, f"{path} imports {sorted(early)} at its top"


def test_importing_the_package_is_light():
    code = (
        "import sys; before = set(sys.modules); import sweettok; sweettok.__version__; dir(sweettok); "
        "print(' '.join(sorted({name.split('.')[0] for name in set(sys.modules) - before})))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) - {"sweettok"} - sys.stdlib_module_names, done.stdout


def test_public_names():
    for name in sweettok.__all__:
        assert getattr(sweettok, name) is not None
    assert {"SweetTok", "ProxyTokenizer", "TokenLayout", "load_config"} <= set(dir(sweettok))
    with pytest.raises(AttributeError, match="module 'sweettok' has no attribute 'Sweettok'"):
        sweettok.Sweettok  # noqa: B018


# ------------------------------------------------------------------------------------------------------ never done


def test_no_pickle_is_run():
    for path, tree in TREES.items():
        for name, call in calls(tree):
            owner = getattr(getattr(call.func, "value", None), "id", "")
            assert not (owner in ("pickle", "cPickle", "dill", "joblib") and name in ("load", "loads")), path
            if owner == "torch" and name == "load":
                safe = {k.arg: getattr(k.value, "value", None) for k in call.keywords}
                assert safe.get("weights_only") is True, f"{path}:{call.lineno}: torch.load without weights_only=True"
            if owner in ("np", "numpy") and name == "load":
                assert "allow_pickle" not in {k.arg for k in call.keywords}, f"{path}:{call.lineno}"


@pytest.mark.parametrize("keyword", ["weights_only", "strict"])
def test_no_check_is_turned_off(keyword):
    for path, tree in TREES.items():
        for name, call in calls(tree):
            if name == "zip":
                continue
            off = [k for k in call.keywords if k.arg == keyword and getattr(k.value, "value", None) is False]
            assert not off, f"{path}:{call.lineno}: {keyword}=False"


# The only places that ask for a kind of device, and why.
DEVICE_CHECKS = {
    ("data/dataset.py", "torch.cuda"): "pinned memory is of use only where there is such a device",
}


def test_no_device_is_named():
    found = set()
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in ("cuda", "is_cuda"):
                owner = getattr(node.value, "id", "")
                found.add((path.as_posix(), f"{owner}.cuda" if node.attr == "cuda" else "is_cuda"))
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "cuda" in node.value.lower():
                found.add((path.as_posix(), repr(node.value)))
    assert found == DEVICE_CHECKS.keys()


def test_models_do_not_wait_for_the_device():
    """No `.item()` in models/ outside `decode`, which looks at the codes it was given before it uses them."""
    for path, tree in TREES.items():
        if part_of(path) not in MODELS:
            continue
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef) and function.name != "decode":
                assert "item" not in {name for name, _ in calls(function)}, f"{path}: {function.name}"


def test_no_bare_except_and_no_print_in_the_library():
    for path, tree in TREES.items():
        bare = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.type is None]
        assert not bare, f"{path}:{bare}"
        part = part_of(path)
        if part in MODELS | LEVELS[0] | {"hub", "losses"} and path.name != "__main__.py":
            assert "print" not in {name for name, _ in calls(tree)}, path


# ---------------------------------------------------------------------------------------------------- configuration


def config_fields() -> dict[str, str]:
    """Every field of every configuration class -> the class."""
    found, waiting = {}, [task.run_class for task in STAGES.values()]
    while waiting:
        cls = waiting.pop()
        for field in dataclasses.fields(cls):
            found[field.name] = cls.__name__
            if dataclasses.is_dataclass(field.default_factory):
                waiting.append(field.default_factory)
    return found


def names_read(tree: ast.AST) -> set[str]:
    """Attributes that are read, except by the checks of the configuration itself."""
    names = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef) and node.name in ("__post_init__", "_check_windows"):
            continue
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            names.add(node.attr)
        names |= names_read(node)
    return names


def test_every_setting_is_read_somewhere():
    read = set().union(*map(names_read, TREES.values()))
    # `stage` chooses the class in load_config, by name, before there is a configuration.
    unread = sorted(f"{cls}.{name}" for name, cls in config_fields().items() if name not in read | {"stage"})
    assert not unread, f"settings that nothing reads: {', '.join(unread)}"
