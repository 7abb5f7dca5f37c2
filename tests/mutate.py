"""Break the code on purpose and see a test fail: `make mutate`.

Applies deliberate bugs (tests/mutations.py) and mutants sampled by seed over hw, compiler and arch, one by one, each in a
copy of the tree, and runs the tests that should catch it. Prints every mutant by name, its fate, the test that caught
it, and the score; exits with 1 unless every deliberate bug is caught. Some sampled mutants change nothing that can be
seen (a wider signal, a buffer's size), so their score is read, not enforced.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import json
import os
import queue
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from mutations import MUTATIONS, Mutation

ROOT = Path(__file__).parents[1]
FOLDERS = ("arch", "quant", "compiler", "hw", "sim", "boards", "examples")
SAMPLED_FOLDERS = ("hw", "compiler", "arch")
MATRIX, TINY = "tests/hw/test_matrix.py", "tests/test_tiny.py"
COVERING: dict[str, tuple[str, ...]] = {
    "hw/lanes/": ("tests/hw/test_lanes.py", MATRIX),
    "hw/vector/": ("tests/hw/test_vector.py",),
    **{f"hw/{name}.py": (MATRIX,) for name in ("array", "compute", "delay", "drain", "fetch", "matrix")},
    **{f"hw/{name}.py": (MATRIX,) for name in ("moments", "operand", "requantize", "weights")},
    "hw/": ("tests/hw/test_top.py",),
    "compiler/": ("tests/compiler", "tests/sim/test_functional.py"),
    "arch/": ("tests/arch", "tests/compiler", "tests/sim/test_functional.py"),
}
"""Tests of a file, besides those at its mirrored path and TINY, by the longest prefix of its path."""
OUTCOMES = ("caught", "survived", "timeout")
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
_WIDTHS = {"Signal", "signed", "unsigned", "In", "Out"}
"""Calls whose integers make a width: one bit more changes nothing."""


def _parts(node: ast.AST, width: bool = False) -> Iterator[ast.AST]:
    """The nodes whose change can matter: no messages, annotations, assertions and (where `width`) integers."""
    if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr) or (width and isinstance(node, ast.Constant)):
        return
    yield node
    function = getattr(node, "func", None)
    called = getattr(function, "id", getattr(function, "attr", ""))
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list") or called in ("isinstance", "print"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _parts(child, width or (called in _WIDTHS and name == "args"))


def candidates(root: Path, path: Path) -> list[Mutation]:
    """Every change of one operator or integer (by 1) in the functions of a file."""
    raw = path.read_bytes()
    name = path.relative_to(root).as_posix()
    lines, starts = raw.splitlines(keepends=True), [0]
    for text in lines:
        starts.append(starts[-1] + len(text))

    def span(a: ast.AST) -> tuple[int, int]:
        return starts[a.lineno - 1] + a.col_offset, starts[a.end_lineno - 1] + a.end_col_offset

    found = []

    def add(begin: int, end: int, new: str, line: int) -> None:
        text = lines[line - 1].decode().strip()
        title = f"{name}:{line} {raw[begin:end].decode()} -> {new} in: {text[:70]}"
        found.append(Mutation(title, name, (begin, end), new, tests_of(root, path)))

    functions = [n for n in ast.walk(ast.parse(raw)) if isinstance(n, ast.FunctionDef)]
    for node in {id(part): part for f in functions for s in f.body for part in _parts(s)}.values():
        if isinstance(node, ast.BinOp | ast.Compare):
            right = node.right if isinstance(node, ast.BinOp) else node.comparators[0]
            operator = type(node.op if isinstance(node, ast.BinOp) else node.ops[0])
            if operator in _OPERATORS:
                old, new = _OPERATORS[operator]
                begin, end = span(node.left)[1], span(right)[0]
                position = raw[begin:end].find(old.encode())
                add(begin + position, begin + position + len(old), new, node.lineno)
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            add(*span(node), str(node.value + 1), node.lineno)
    return found


def tests_of(root: Path, path: Path) -> tuple[str, ...]:
    """The tests of a file: those at the mirrored path, those that cover its folder, and the tiny model, last."""
    name = path.relative_to(root).as_posix()
    mirrored = (root / "tests" / name).parent.glob(f"test_{path.stem}*.py")
    own = sorted(p.relative_to(root).as_posix() for p in mirrored)
    covering = COVERING[max((prefix for prefix in COVERING if name.startswith(prefix)), key=len)]
    return tuple(dict.fromkeys((*own, *covering, TINY)))


def sampled(root: Path, count: int, seed: int) -> list[Mutation]:
    """`count` mutants of each sampled folder."""
    generator = random.Random(seed)
    chosen = []
    for folder in SAMPLED_FOLDERS:
        pool = [m for path in sorted((root / folder).rglob("*.py")) for m in candidates(root, path)]
        chosen += generator.sample(pool, min(count, len(pool)))
    return chosen


class Trees:
    """A snapshot of the project in a temporary folder, and copies of it in which mutants run, one per job.

    Links in a copy's folder terrazzo make it a whole package, which Python finds before the installed one. Copies keep
    their places, so that numba finds what it compiled for the same sources. Simulators are cached in the temporary
    folder too: those of mutants are gone with it.
    """

    def __init__(self, room: Path, jobs: int):
        self.original, self.cache = room / "original", room / "cache"
        self.free: queue.Queue[Path] = queue.Queue()
        for job in range(jobs):
            self.free.put(room / f"job-{job}")
        ignored = shutil.ignore_patterns("__pycache__", ".hypothesis")
        for folder in (*FOLDERS, "tests", "terrazzo", "docs"):
            if (ROOT / folder).exists():
                shutil.copytree(ROOT / folder, self.original / folder, ignore=ignored)
        for file in ("pyproject.toml", "README.md", "Makefile"):
            shutil.copy2(ROOT / file, self.original)
        self.cache.mkdir()
        caches = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        for tool in caches.glob("*"):
            if tool.name != "terrazzo":
                (self.cache / tool.name).symlink_to(tool)

    def run(self, mutation: Mutation | None, command: list[str]) -> tuple[int | None, str]:
        """Exit status (None: too slow) and output of a Python command in a fresh copy with a mutation."""
        tree = self.free.get()
        try:
            shutil.rmtree(tree, ignore_errors=True)
            shutil.copytree(self.original, tree)
            for folder in FOLDERS:
                (tree / "terrazzo" / folder).symlink_to(tree / folder)
            if mutation is not None:
                _apply(mutation, tree)
            environment = os.environ | {
                "PYTHONPATH": str(tree),
                "PYTHONDONTWRITEBYTECODE": "1",
                "NUMBA_CACHE_DIR": str(tree.with_suffix(".numba")),
                "XDG_CACHE_HOME": str(self.cache),
                "OPENBLAS_NUM_THREADS": "1",
            }
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=tree,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
            try:
                output = process.communicate(timeout=TIMEOUT_S)[0]
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                return None, ""
            return process.returncode, output
        finally:
            self.free.put(tree)

    def check(self, tests: list[str]) -> None:
        """End the program unless a copy imports its own modules and passes the tests without a mutation."""
        modules = "terrazzo terrazzo.arch.isa terrazzo.compiler.rows terrazzo.hw.drain terrazzo.hw.lanes.rows"
        modules += " terrazzo.hw.vector.steps terrazzo.sim.timing.vector terrazzo.quant.quantizer"
        code = f"import importlib, os\nfor name in {modules.split()}:\n"
        code += "    path = os.path.realpath(importlib.import_module(name).__file__)\n"
        code += "    assert path.startswith(os.path.realpath(os.getcwd()) + os.sep), path"
        for command in (["-c", code], _pytest(tests)):
            status, output = self.run(None, command)
            if status != 0:
                raise SystemExit(f"the copy of the tree must pass without a mutation:\n{output[-3000:]}")


def _apply(mutation: Mutation, tree: Path) -> None:
    file = tree / mutation.path
    raw = file.read_bytes()
    if isinstance(mutation.old, str):
        if raw.count(mutation.old.encode()) != 1:
            raise SystemExit(f"mutation {mutation.name!r}: {mutation.path} must hold {mutation.old!r} once")
        raw = raw.replace(mutation.old.encode(), mutation.new.encode())
    else:
        begin, end = mutation.old
        raw = raw[:begin] + mutation.new.encode() + raw[end:]
    ast.parse(raw)
    file.write_bytes(raw)


def _pytest(tests: list[str]) -> list[str]:
    return ["-m", "pytest", "-x", "-q", "--tb=line", "-m", "not full", "-p", "no:cacheprovider", *tests]


def fate(trees: Trees, kind: str, mutation: Mutation) -> dict:
    """Run the tests of one mutation: outcome "caught" (and by which test), "survived" or "timeout" (not known)."""
    start = time.monotonic()
    status, output = trees.run(mutation, _pytest(list(mutation.tests)))
    seconds = round(time.monotonic() - start, 1)
    blamed = re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", output, re.MULTILINE)
    if status not in (None, 0) and not blamed and "while loading conftest" not in output:
        raise SystemExit(f"mutation {mutation.name!r}: pytest itself failed:\n{output[-3000:]}")
    outcome = {None: "timeout", 0: "survived"}.get(status, "caught")
    by = blamed[0] if blamed else ""
    return {"kind": kind, "name": mutation.name, "outcome": outcome, "by": by, "seconds": seconds}


def main() -> None:
    """Run all mutants and print the score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sampled", type=int, default=3, help="mutants of each of hw, compiler and arch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time")
    parser.add_argument("--only", default="", help="run only mutants whose name matches this")
    parser.add_argument("--baseline", action="store_true", help="first pass all tests without a mutation")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "mutants.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        trees = Trees(Path(room), options.jobs)
        chosen = [("deliberate", m) for m in MUTATIONS]
        chosen += [("sampled", m) for m in sampled(trees.original, options.sampled, options.seed)]
        chosen = [(kind, mutation) for kind, mutation in chosen if re.search(options.only, mutation.name)]
        tests = sorted({test for _, mutation in chosen for test in mutation.tests})
        trees.check(tests if options.baseline else [TINY])
        results = []
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            fates = [pool.submit(fate, trees, kind, mutation) for kind, mutation in chosen]
            for future in concurrent.futures.as_completed(fates):
                results.append(result := future.result())
                print("{outcome:8} {seconds:6.1f} s  {kind:10} {name}  {by}".format(**result), flush=True)
    for kind in ("deliberate", "sampled"):
        of_kind = [r for r in results if r["kind"] == kind]
        count = {outcome: sum(r["outcome"] == outcome for r in of_kind) for outcome in OUTCOMES}
        print(f"{kind}: {len(of_kind)} mutants:", ", ".join(f"{n} {outcome}" for outcome, n in count.items()))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=2) + "\n")
    sys.exit(any(r["kind"] == "deliberate" and r["outcome"] != "caught" for r in results))


if __name__ == "__main__":
    main()
