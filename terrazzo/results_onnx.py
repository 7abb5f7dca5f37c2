"""The ONNX export of integer models with their weights, run by onnxruntime: the codes of the reference."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np

from . import results_graphs, results_table
from .arch.errors import UserError
from .quant import onnx_export
from .results_graphs import TARGETS
from .sim import reference

__all__ = ["main", "measure", "table"]

IMAGES, BATCH = 16, 4


def measure(job: results_table.Job) -> dict:
    """Export the graph of one of `TARGETS` and run `IMAGES` images; a JSON object."""
    if find_spec("onnxruntime") is None:
        raise UserError("onnxruntime must be installed to run the export; pip install terrazzo[test]")
    import onnxruntime

    target, steps = TARGETS[job.row], results_table.Steps()
    graph = results_graphs.load(job.row, job.files)
    codes = reference.quantize_batch(graph, results_graphs.held_out(target.model, job.data, IMAGES))
    path = job.files / f"{job.row}.onnx"
    with steps.step("export"):
        onnx_export.export(graph, path)
    with steps.step("reference"):
        expected = reference.run(graph, codes)
    with steps.step("open"):
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    job.progress(f"{IMAGES} images in onnxruntime")
    with steps.step("onnxruntime"):
        batches = [codes[start : start + BATCH] for start in range(0, IMAGES, BATCH)]
        found = np.concatenate([session.run(None, {graph.input: batch})[0] for batch in batches])
    different = np.reshape(found, (IMAGES, -1)) != np.reshape(expected, (IMAGES, -1))
    return {
        "model": target.model,
        "images": IMAGES,
        "codes": different.size,
        "distinct_codes": len(np.unique(expected)),
        "different_codes": int(different.sum()),
        "different_images": int(different.any(axis=1).sum()),
        "equal": not bool(different.any()),
        "file_bytes": path.stat().st_size,
        "onnxruntime": onnxruntime.__version__,
        "steps": steps.found,
        "command": f"python -m terrazzo.results_onnx --only {job.row} --force",
    }


def table(rows: dict[str, dict]) -> str:
    """The rows as Markdown."""
    names = (
        "graph|images|output codes|codes that differ|bit-identical|file, MB|onnxruntime|export|reference|run"
    )
    lines = [
        [
            f"`{name}`",
            row["images"],
            row["codes"],
            row["different_codes"],
            "yes" if row["equal"] else "no",
            f"{row['file_bytes'] / 1e6:.1f}",
            row["onnxruntime"],
            *(results_table.taken(row["steps"][step]) for step in ("export", "reference", "onnxruntime")),
        ]
        for name, row in rows.items()
    ]
    return results_table.markdown(names.split("|"), lines)


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    part = results_table.Part(
        name="onnx", module="terrazzo.results_onnx", rows=list(TARGETS), measure=measure, table=table
    )
    return results_table.run(part, __doc__, arguments)


if __name__ == "__main__":
    sys.exit(main())
