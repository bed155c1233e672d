"""The names that type checkers see are the public names; mypy itself runs in scripts/test.sh."""

import ast
from pathlib import Path

import sweettok

PACKAGE = Path(sweettok.__file__).parent
FACE = Path(__file__).with_name("typing_face.py")


def names_from(tree: ast.AST) -> dict[str, str]:
    """Every name that `from module import name` brings -> the module."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: node.module for node in found for alias in node.names}


def test_type_checkers_are_told_every_public_name():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    wording = [
        node for node in tree.body if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
    ]
    assert names_from(wording[0]) == sweettok._PUBLIC
    assert (PACKAGE / "py.typed").is_file()


def test_every_public_name_is_checked():
    names = names_from(ast.parse(FACE.read_text(encoding="utf-8")))
    assert {name for name, module in names.items() if module == "sweettok"} == sweettok._PUBLIC.keys()
