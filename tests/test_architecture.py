"""Imports point one way, only quant imports torch, and the folders are one package."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ("arch", "quant", "compiler", "hw", "sim", "boards", "terrazzo")
ALLOWED = {
    "arch": set(),
    "quant": {"arch"},
    "compiler": {"arch"},
    "hw": {"arch"},
    "sim": {"arch", "hw"},
    "boards": {"arch", "compiler", "hw", "sim"},
    "terrazzo": {*ORDER, "examples"},
}


def imports(path: Path, folder: str):
    """(imported folder or third-party module, line) of a source file."""
    package = ("terrazzo", *path.relative_to(ROOT).parts[:-1])
    if folder == "terrazzo":
        package = package[1:]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield tuple(alias.name.split(".")), node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = (*base, *(node.module.split(".") if node.module else ()))
            for alias in node.names:
                yield (*module, alias.name), node.lineno


@pytest.mark.parametrize("folder", ORDER)
def test_imports_point_one_way(folder):
    wrong = []
    for path in (ROOT / folder).rglob("*.py"):
        for name, line in imports(path, folder):
            if name[0] == "terrazzo" and len(name) > 1:
                target = name[1] if name[1] in (*ORDER, "examples") else "terrazzo"
                if target != folder and target not in ALLOWED[folder]:
                    wrong.append(f"{path.relative_to(ROOT)}:{line} imports {'.'.join(name)}")
            if name[0] == "torch" and folder not in ("quant",):
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports torch")
            if name[0] in ORDER[:-1]:
                wrong.append(f"{path.relative_to(ROOT)}:{line} imports top-level {name[0]}")
    assert not wrong, "\n".join(wrong)


def test_folders_are_not_top_level_modules(tmp_path):
    """`import hw` must not find this project: it would load modules twice."""
    code = f"import importlib.util as u; print([n for n in {ORDER[:-1]} if u.find_spec(n)])"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"
    assert importlib.util.find_spec("terrazzo.hw") is not None


def test_every_module_states_its_names():
    missing = [
        str(path.relative_to(ROOT))
        for folder in ORDER
        for path in (ROOT / folder).rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py") and "__all__" not in path.read_text()
    ]
    assert not missing
