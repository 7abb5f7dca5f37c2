"""The parts of the results: rows that are kept, steps that are measured, and differences that are not passed over."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest

from terrazzo import (
    results_frames,
    results_graphs,
    results_imported,
    results_machines,
    results_onnx,
    results_table,
)
from terrazzo.arch.errors import UserError
from terrazzo.sim import reference
from terrazzo.sim.rtl import RtlSimulator

from .. import tiny

PARTS = (results_graphs, results_machines, results_frames, results_onnx, results_imported)


def part(measure, name="part"):
    return results_table.Part(
        name=name,
        module="none",
        rows=["a", "b"],
        measure=measure,
        table=lambda rows: f"table of {list(rows)}",
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TERRAZZO_DATA", str(tmp_path))
    return tmp_path


def test_a_step_counts_its_own_time_and_memory():
    steps = results_table.Steps()
    with steps.step("large"):
        block = np.ones(200 << 20, np.uint8)
        del block
    with steps.step("small"):
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
    large, small = steps.found["large"], steps.found["small"]
    assert large["peak_mib"] > small["peak_mib"] + 150
    assert 0.19 <= small["processor_seconds"] < 0.5 and small["seconds"] >= 0.19


def test_a_row_that_differs_is_written_and_fails(folder, capfd):
    out, docs = folder / "results.json", folder / "results.md"
    rows = {"a": {"equal": True}, "b": {"equal": False}}
    out.write_text(json.dumps({"part": rows, "other": 7}))
    docs.write_text("x\n<!-- part: begin -->\n<!-- part: end -->\ny\n")
    assert results_table.run(part(None), "", ["--out", str(out), "--docs", str(docs)]) == 1
    assert "error: rows b: must be equal, but differ" in capfd.readouterr().err
    assert docs.read_text() == "x\n<!-- part: begin -->\ntable of ['a', 'b']\n<!-- part: end -->\ny\n"
    assert json.loads(out.read_text()) == {"part": rows, "other": 7}


def test_a_measured_row_is_json_on_the_last_line(folder, capfd):
    found = part(lambda job: {"row": job.row, "files": job.files.name, "data": job.data == folder})
    assert results_table.run(found, "", ["--out", str(folder / "r.json"), "--measure", "b"]) == 0
    assert json.loads(capfd.readouterr().out) == {"row": "b", "files": "results", "data": True}


def test_a_graph_that_is_not_there_names_its_command(tmp_path):
    with pytest.raises(UserError, match="results_graphs --only deit-tiny-fixed8 --force"):
        results_graphs.load("deit-tiny-fixed8", tmp_path)


def test_machines_have_4096_multipliers_and_differ():
    first, second = results_graphs.MACHINES.values()
    assert first.multipliers == second.multipliers == 4096
    assert first.lanes.kinds != second.lanes.kinds and first.drain != second.drain


@pytest.mark.parametrize("module", PARTS)
def test_every_part_is_a_command_with_a_place_in_the_document(module, folder, capfd):
    docs = folder / "results.md"
    name = module.__name__.rpartition("_")[2]
    docs.write_text(f"<!-- {name}: begin -->\n<!-- {name}: end -->\n")
    arguments = ["--out", str(folder / "none.json"), "--docs", str(docs), "--only"]
    assert module.main(arguments) == 0
    assert docs.read_text().count("\n| --- |") >= 1


@pytest.fixture
def target(tmp_path, monkeypatch):
    """The tiny graph and its machine as a row, with random images."""
    row = SimpleNamespace(model="tiny", machine="tiny", accelerator=tiny.MACHINE)
    graph = tiny.graph()
    graph.save(results_graphs.path_of("tiny", tmp_path))
    shape = graph.tensor(graph.input).shape
    images = np.random.default_rng(0).uniform(0, graph.preprocessing.raw_max, (16, *shape))
    monkeypatch.setattr(results_graphs, "held_out", lambda model, data, count: images[:count])
    for module in (results_frames, results_onnx):
        monkeypatch.setattr(module, "TARGETS", {"tiny": row})
    return results_table.Job(row="tiny", data=tmp_path, files=tmp_path)


def test_frames_are_equal_in_all_simulators(target):
    row = results_frames.measure(target)
    assert row["equal"] and row["rtl_mismatches"] == row["functional_mismatches"] == 0
    assert row["rtl_cycles"] == [row["cycle_model_cycles"]] * results_frames.IMAGES
    assert row["layers_in_the_predicted_cycles"] == row["layers_with_cycles"] > 5
    assert row["traffic"]["bound"] > row["traffic"]["input"] + row["traffic"]["output"] > 0
    assert {"compile", "reference", "functional", "cycle model", "RTL"} == set(row["steps"])
    assert len(results_frames.table({"tiny": row}).split("\n\n")) == 3


def test_frames_that_differ_are_counted(target, monkeypatch):
    run = RtlSimulator.run

    def wrong(*arguments, **options):
        found = run(*arguments, **options)
        found.outputs[1, 0, 0] += 1
        found.cycles[0] += 1
        return found

    monkeypatch.setattr(RtlSimulator, "run", wrong)
    row = results_frames.measure(target)
    assert row["rtl_mismatches"] == 1 and row["functional_mismatches"] == 0 and row["equal"] is False
    assert row["rtl_cycles"][0] == row["cycle_model_cycles"] + 1


def test_onnxruntime_has_the_codes_of_the_reference(target, monkeypatch):
    row = results_onnx.measure(target)
    assert row["equal"] is True and row["different_codes"] == 0 and row["distinct_codes"] > 5
    run = reference.run
    monkeypatch.setattr(reference, "run", lambda graph, codes: np.where(run(graph, codes) > 0, 1, 0))
    row = results_onnx.measure(target)
    assert row["equal"] is False and row["different_images"] > 0
