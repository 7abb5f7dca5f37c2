"""Measured figures: rows that each have a process of their own, kept in a JSON file and as tables in a document."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from .arch.errors import UserError
from .arch.files import write_text

__all__ = ["Job", "Part", "Steps", "children_peak_mib", "data_folder", "markdown", "run", "taken"]

_PEAK, _CLEAR = "VmHWM:", "5"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What a row is measured from."""

    row: str
    data: Path | None
    """Weights and images."""
    files: Path
    """Where parts keep files for each other."""

    def progress(self, text: str) -> None:
        """Say on standard error how far it is."""
        print(f"{self.row}: {text}", file=sys.stderr, flush=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """A part of the results. Its module is a command that calls `run`."""

    name: str
    """Key in the JSON file, and name of the table's place in the document."""
    module: str
    rows: Sequence[str]
    measure: Callable[[Job], dict]
    """A row's JSON object. A field "equal" that is false makes the command fail, after the row is written."""
    table: Callable[[dict[str, dict]], str]
    """The rows as Markdown."""
    data: bool = True
    """Whether rows need the folder of weights and images."""


def data_folder() -> Path:
    """The folder of weights and images. Raises UserError."""
    folder = os.environ.get("TERRAZZO_DATA")
    if not folder or not Path(folder).is_dir():
        raise UserError(
            "TERRAZZO_DATA must name the folder of weights and images, which does not exist; export it"
        )
    return Path(folder)


class Steps:
    """What steps take, by name, one after another."""

    def __init__(self) -> None:
        self.found: dict[str, dict] = {}
        """By name: wall and processor seconds (those of processes that ended in it included), the peak memory of this
        process (with all that is in memory before), and the machine's load average at the end."""
        self._name = ""

    def begin(self, name: str) -> None:
        """End the step that runs, if any, and begin another."""
        self.end()
        _forget_peak()
        self._name, self._start, self._processor = name, time.perf_counter(), _processor_seconds()

    def end(self) -> None:
        """End the step that runs, if any."""
        if self._name:
            self.found[self._name] = {
                "seconds": round(time.perf_counter() - self._start, 2),
                "processor_seconds": round(_processor_seconds() - self._processor, 2),
                "peak_mib": round(_peak_mib()),
                "load": round(os.getloadavg()[0], 1),
            }
        self._name = ""

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """The body as a step."""
        self.begin(name)
        yield
        self.end()


def _processor_seconds() -> float:
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def _forget_peak() -> None:
    with contextlib.suppress(OSError):  # elsewhere than on Linux the peak is that since the start
        Path("/proc/self/clear_refs").write_text(_CLEAR)


def _peak_mib() -> float:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(_PEAK):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def children_peak_mib() -> int:
    """The peak of the largest process that this one has waited for."""
    return round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)


def markdown(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in rows)


def taken(step: dict) -> str:
    """A step of `Steps.found` as a cell: wall / processor seconds, peak memory in MiB, load average."""
    return f"{step['seconds']:g} / {step['processor_seconds']:g} s, {step['peak_mib']} MiB, load {step['load']:g}"


def _read(path: Path) -> dict:
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: must be JSON, but {error}; remove it to measure all rows again") from None


def _document(docs: Path, name: str, table: str) -> None:
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = docs.read_text() if docs.is_file() else f"# Results\n\n{begin}\n{end}\n"
    before, found, rest = text.partition(begin)
    if not found or end not in rest:
        raise UserError(f"{docs}: must contain the lines {begin} and {end}; put them back")
    write_text(docs, f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}")


def run(part: Part, description: str, arguments: list[str] | None = None) -> int:
    """The command of a part; returns the exit status.

    Every row runs in a process of its own, so that its peak memory is its own; a row that exists is kept, so an
    interrupted run goes on where it stopped.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {part.module}", description=description)
    parser.add_argument("--out", type=Path, default=Path("build/results.json"))
    parser.add_argument("--docs", type=Path, help="Markdown file whose table is replaced")
    parser.add_argument("--only", nargs="*", choices=part.rows, default=list(part.rows), metavar="ROW")
    parser.add_argument("--force", action="store_true", help="measure rows that exist again")
    parser.add_argument("--measure", choices=part.rows, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    try:
        data = data_folder() if part.data else None
        if options.measure:
            job = Job(row=options.measure, data=data, files=options.out.parent / "results")
            print(json.dumps(part.measure(job)))
            return 0
        rows = _rows(part, options)
        if options.docs:
            _document(options.docs, part.name, part.table(rows))
        print(part.table(rows))
        if different := [name for name, row in rows.items() if row.get("equal") is False]:
            raise UserError(f"rows {', '.join(different)}: must be equal, but differ; see {options.out}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _rows(part: Part, options: argparse.Namespace) -> dict[str, dict]:
    """The rows that exist, and those of `options.only` that had to be measured."""
    rows = _read(options.out).get(part.name, {})
    for number, name in enumerate(options.only, 1):
        if name in rows and not options.force:
            continue
        print(f"[{number}/{len(options.only)}] {name}", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", part.module, "--out", str(options.out), "--measure", name]
        found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if found.returncode:
            raise UserError(f"row {name}: measuring failed with status {found.returncode}; see above")
        rows[name] = json.loads(found.stdout.splitlines()[-1])
        rows = {key: rows[key] for key in part.rows if key in rows}
        everything = {**_read(options.out), part.name: rows}
        write_text(options.out, json.dumps(everything, indent=2) + "\n")
    return rows
