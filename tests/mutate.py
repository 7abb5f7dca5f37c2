"""Break the code on purpose and see a test fail: `make mutate`.

Applies deliberate bugs (tests/mutations.py) and mutants sampled by seed over hw, compiler and arch, one by one, each in a
copy of the tree, and runs the tests that should catch it. Prints every mutant by name, its fate and the score; exits
with 1 when a deliberate bug survives.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parents[1]
FOLDERS = ("arch", "quant", "compiler", "hw", "sim", "boards", "examples")
SAMPLED_FOLDERS = ("hw", "compiler", "arch")
ALWAYS = "tests/test_tiny.py"
TIMEOUT_S = 600

_OPERATORS = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "+"),
    ast.FloorDiv: ("//", "*"),
    ast.Mod: ("%", "*"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
}


def _offsets(source: str) -> list[int]:
    """Byte offset at which each line starts."""
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    return starts


def candidates(path: Path) -> list[Mutation]:
    """Every one-token change of operators and integer constants inside functions of a file."""
    source = path.read_text()
    raw, starts = source.encode(), _offsets(source)
    name = str(path.relative_to(ROOT))

    def span(a: ast.AST) -> tuple[int, int]:
        return starts[a.lineno - 1] + a.col_offset, starts[a.end_lineno - 1] + a.end_col_offset

    found = []

    def add(begin: int, end: int, new: str, line: int) -> None:
        old = raw[begin:end].decode()
        found.append(
            Mutation(f"{name}:{line} {old.strip()} -> {new.strip()}", name, (begin, end), new, (ALWAYS,))
        )

    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]
    for node in {id(n): n for f in functions for s in f.body for n in ast.walk(s)}.values():
        if isinstance(node, ast.BinOp | ast.Compare):
            left = node.left
            right = node.right if isinstance(node, ast.BinOp) else node.comparators[0]
            operator = type(node.op if isinstance(node, ast.BinOp) else node.ops[0])
            if operator in _OPERATORS:
                old, new = _OPERATORS[operator]
                begin, end = span(left)[1], span(right)[0]
                position = raw[begin:end].find(old.encode())
                if position >= 0:
                    add(begin + position, begin + position + len(old), new, node.lineno)
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            add(*span(node), str(node.value + 1), node.lineno)
    return found


def sampled(count: int, seed: int) -> list[Mutation]:
    """`count` mutants of each sampled folder, tested by the tiny model and by the file's own tests."""
    generator = random.Random(seed)
    chosen = []
    for folder in SAMPLED_FOLDERS:
        pool = [m for path in sorted((ROOT / folder).rglob("*.py")) for m in candidates(path)]
        for mutation in generator.sample(pool, min(count, len(pool))):
            stem = Path(mutation.path).stem
            own = sorted(str(p.relative_to(ROOT)) for p in (ROOT / "tests" / folder).glob(f"test_{stem}*.py"))
            chosen.append(dataclasses.replace(mutation, tests=(*own, ALWAYS)))
    return chosen


def _copy(target: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__", ".hypothesis", "build", ".venv")
    for folder in (*FOLDERS, "tests", "terrazzo", "docs"):
        shutil.copytree(ROOT / folder, target / folder, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", target)
    package = target / "site" / "terrazzo"
    package.mkdir(parents=True)
    for file in (target / "terrazzo").glob("*.py"):
        (package / file.name).symlink_to(file)
    for folder in FOLDERS:
        (package / folder).symlink_to(target / folder)


def fate(mutation: Mutation) -> tuple[str, float]:
    """Apply one mutation in a copy of the tree and run its tests: "caught", "survived" or "timeout", and seconds."""
    with tempfile.TemporaryDirectory() as room:
        target = Path(room)
        _copy(target)
        file = target / mutation.path
        raw = file.read_bytes()
        if isinstance(mutation.old, str):
            if raw.count(mutation.old.encode()) != 1:
                raise SystemExit(
                    f"mutation {mutation.name!r}: {mutation.path} must hold {mutation.old!r} once"
                )
            raw = raw.replace(mutation.old.encode(), mutation.new.encode())
        else:
            begin, end = mutation.old
            raw = raw[:begin] + mutation.new.encode() + raw[end:]
        file.write_bytes(raw)
        environment = {**os.environ, "PYTHONPATH": str(target / "site"), "PYTHONDONTWRITEBYTECODE": "1"}
        environment["NUMBA_CACHE_DIR"] = str(target / "numba")
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-m",
            "not full",
            "-p",
            "no:cacheprovider",
            *mutation.tests,
        ]
        start = time.monotonic()
        try:
            run = subprocess.run(
                command, cwd=target, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S
            )
        except subprocess.TimeoutExpired:
            return "caught (timeout)", time.monotonic() - start
        if run.returncode not in (0, 1, 2):
            raise SystemExit(
                f"mutation {mutation.name!r}: pytest itself failed:\n{run.stdout[-2000:]}{run.stderr[-2000:]}"
            )
        return "survived" if run.returncode == 0 else "caught", time.monotonic() - start


def main() -> None:
    """Run all mutants and print the score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sampled", type=int, default=5, help="mutants of each of hw, compiler and arch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="run only mutants whose name contains this")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "mutants.json")
    options = parser.parse_args()
    deliberate = [m for m in MUTATIONS if options.only in m.name]
    random_ones = [m for m in sampled(options.sampled, options.seed) if options.only in m.name]
    results = []
    for kind, mutations in (("deliberate", deliberate), ("sampled", random_ones)):
        for mutation in mutations:
            outcome, seconds = fate(mutation)
            results.append(
                {"kind": kind, "name": mutation.name, "outcome": outcome, "seconds": round(seconds, 1)}
            )
            print(f"{outcome:18} {seconds:6.1f} s  {kind:10} {mutation.name}", flush=True)
    for kind in ("deliberate", "sampled"):
        of_kind = [r for r in results if r["kind"] == kind]
        caught = sum(r["outcome"] != "survived" for r in of_kind)
        print(f"{kind}: {caught} of {len(of_kind)} caught")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n")
    sys.exit(any(r["kind"] == "deliberate" and r["outcome"] == "survived" for r in results))


if __name__ == "__main__":
    main()
