"""The command line: arguments in, tables or JSON out; every verb is one call of `terrazzo.api`."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import click
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TimeRemainingColumn
from rich.table import Table

from .arch.errors import UserError

__all__ = ["app", "main"]

app = typer.Typer(
    name="terrazzo",
    help="Generate and simulate FPGA/ASIC accelerators for vision models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_out = Console(width=None if sys.stdout.isatty() else 120)
_err = Console(stderr=True)

Functions = Annotated[
    str,
    typer.Option(
        help="exact, or those of published systems: i-vit (Shiftmax, ShiftGELU), heatvit (polynomials)."
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
File = Annotated[Path | None, typer.Argument(help="ONNX model, instead of --model.", show_default=False)]
Model = Annotated[
    str | None,
    typer.Option("--model", help="digits-vit, digits-cnn, or file.py:function returning a torch module."),
]
Mean = Annotated[str | None, typer.Option(help="Mean of pixels 0..1, one number or one per channel.")]
Std = Annotated[str | None, typer.Option(help="Standard deviation of pixels 0..1, likewise.")]
Input = Annotated[str | None, typer.Option("--input", help="Channels, height and width of one image: C,H,W.")]
Weights = Annotated[Path | None, typer.Option(help="safetensors file, or .pt/.pth with tensors only.")]
Images = Annotated[Path | None, typer.Option(help="Folder of images; default: held-out digits.")]
Rows = Annotated[
    str,
    typer.Option(
        help="mixed (the accelerator's lane mixture), fixed8, or a block such as fixed8=4,fixed4=60."
    ),
]
BoardName = Annotated[str | None, typer.Option("--board", help="Take the accelerator of a board.")]
AcceleratorFile = Annotated[Path | None, typer.Option("--accelerator", help="JSON file of parameters.")]
Latency = Annotated[int, typer.Option(min=1, help="Memory latency in cycles.")]
Interval = Annotated[int, typer.Option(min=1, help="Cycles per bus beat: 1 is full bandwidth, 4 a quarter.")]
Refresh = Annotated[
    int, typer.Option(min=0, max=1169, help="Cycles of every 1170 that memory loses to refresh.")
]


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator:
    """A spinner with the present step on stderr; yields the callable that the API reports to."""
    if quiet or not _err.is_terminal:
        show = functools.partial(_err.print, highlight=False, soft_wrap=True)
        yield (lambda text: None) if quiet else (lambda text: show(f"  {text}"))
        return
    with _err.status("") as status:
        yield status.update


def _table(title: str, rows: list[dict]) -> None:
    if not rows:
        return
    table = Table(title=title, title_justify="left")
    for name, value in rows[0].items():
        justify = "right" if isinstance(value, int | float) else "left"
        table.add_column(name, justify=justify, overflow="fold")
    for row in rows:
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    _out.print(table)


def _emit(as_json: bool, value: dict, tables: dict[str, list[dict]], facts: list[str] = ()) -> None:
    if as_json:
        sys.stdout.write(json.dumps(value, indent=2) + "\n")
        return
    for title, rows in tables.items():
        _table(title, rows)
    for fact in facts:
        _out.print(fact, highlight=False)


def _memory(latency: int, interval: int, refresh: int, stall: float, seed: int):
    from .arch.memory import MemoryModel

    return MemoryModel(latency=latency, interval=interval, refresh_cycles=refresh, stall=stall, seed=seed)


def _named(file: Path | None, model: str | None) -> str:
    """The one model that the user names."""
    if (file is None) == (model is None):
        raise UserError("name one model: an ONNX file, or --model")
    if file is not None and file.suffix != ".onnx":
        raise UserError(f"{file}: a model given as a file must be ONNX (.onnx); use --model for others")
    return model or str(file)


@app.command()
def check(
    file: File = None,
    model: Model = None,
    input: Input = None,
    weights: Weights = None,
    json: Json = False,
) -> None:
    """List every operator of a model that is not supported, where it is and what to do."""
    from . import api

    model = _named(file, model)
    findings = api.check(api.source(model, input, weights))
    rows = [{"where": f.path, "operator": f.op, "reason": f.reason, "remedy": f.remedy} for f in findings]
    _emit(
        json, {"findings": rows}, {"Unsupported": rows}, [] if rows else [f"{model}: everything is supported"]
    )
    if findings:
        raise typer.Exit(1)


@app.command()
def quantize(
    output: Annotated[Path, typer.Option("--output", "-o", help="Graph file to write.")],
    file: File = None,
    model: Model = None,
    input: Input = None,
    weights: Weights = None,
    mean: Mean = None,
    std: Std = None,
    images: Annotated[Path | None, typer.Option(help="Folder of calibration images.")] = None,
    rows: Rows = "mixed",
    activation_bits: Annotated[int, typer.Option(min=4, max=8)] = 8,
    functions: Functions = "exact",
    board: BoardName = None,
    accelerator: AcceleratorFile = None,
    onnx: Annotated[Path | None, typer.Option(help="Also export the integer graph to ONNX.")] = None,
    json: Json = False,
) -> None:
    """Calibrate a float model and write its integer graph; ONNX models that come quantized keep their own scales."""
    from . import api

    model = _named(file, model)
    with _progress(json) as progress:
        source = api.source(model, input, weights, mean=mean, std=std)
        result = api.quantize(
            source,
            api.calibration_images(source, images),
            api.make_accelerator(board, accelerator),
            rows=rows,
            activation_bits=activation_bits,
            functions=functions,
            progress=progress,
        )
        result.graph.save(output)
        if onnx is not None:
            api.export_onnx(result.graph, onnx)
    _emit(
        json,
        {"graph": str(output), "layers": result.report.rows()},
        {"Layers": result.report.rows()},
        [str(output)],
    )


@contextlib.contextmanager
def _bar(quiet: bool) -> Iterator:
    """A progress bar on stderr; yields the callable for text and the one for steps."""
    if quiet or not _err.is_terminal:
        text = (lambda text: None) if quiet else (lambda text: _err.print(f"  {text}", highlight=False))

        def line(done: int, total: int, loss: float) -> None:
            if not quiet and (done == total or done % max(total // 20, 1) == 0):
                text(f"step {done} of {total}, loss {loss:.4g}")

        yield text, line
        return
    columns = ("{task.description}", BarColumn(), "{task.completed}/{task.total}", TimeRemainingColumn())
    with Progress(*columns, console=_err, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield (
            lambda text: bar.update(task, description=text),
            lambda done, total, loss: bar.update(
                task, completed=done, total=total, description=f"loss {loss:.4g}"
            ),
        )


@app.command()
def finetune(
    output: Annotated[Path, typer.Option("--output", "-o", help="Graph file to write.")],
    file: File = None,
    model: Model = None,
    input: Input = None,
    weights: Weights = None,
    mean: Mean = None,
    std: Std = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder or .npz file of images to train on; no labels needed.")
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="Graph file to start from; default: quantize first.")
    ] = None,
    rows: Rows = "mixed",
    activation_bits: Annotated[int, typer.Option(min=4, max=8)] = 8,
    functions: Functions = "exact",
    board: BoardName = None,
    accelerator: AcceleratorFile = None,
    epochs: Annotated[int, typer.Option(help="How often every image is seen.")] = 10,
    batch: Annotated[int, typer.Option(help="Images of one step, of all processes together.")] = 64,
    rate: Annotated[float, typer.Option(help="Largest relative change of a parameter in one step.")] = 2e-3,
    temperature: Annotated[float, typer.Option(help="Divides the logits of both models.")] = 2.0,
    flip: Annotated[bool, typer.Option(help="Mirror half of the images.")] = False,
    shift: Annotated[int, typer.Option(help="Move images by so many pixels at most.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    checkpoint: Annotated[Path | None, typer.Option(help="File to continue from and to write to.")] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N; default: a GPU if there is one.")
    ] = None,
    json: Json = False,
) -> None:
    """Train an integer graph through its own operators to answer like its float model.

    Several processes: torchrun --nproc-per-node N -m terrazzo.cli finetune ...
    """
    from . import api

    settings = api.Settings(
        epochs=epochs,
        batch=batch,
        rate=rate,
        temperature=temperature,
        flip=flip,
        shift=shift,
        seed=seed,
    )
    first = os.environ.get("RANK", "0") == "0"
    with _bar(json or not first) as (progress, step):
        source = api.source(_named(file, model), input, weights, mean=mean, std=std)
        found = api.finetune(
            source,
            api.training_images(source, images),
            api.make_accelerator(board, accelerator),
            settings,
            start=None if start is None else api.Graph.load(start),
            rows=rows,
            activation_bits=activation_bits,
            functions=functions,
            checkpoint=checkpoint,
            device=device,
            progress=progress,
            step=step,
        )
    if first:
        found.graph.save(output)
        losses = [{"epoch": i, "loss": loss} for i, loss in enumerate(found.losses, 1)]
        _emit(json, {"graph": str(output), "losses": found.losses}, {"Training": losses}, [str(output)])


@app.command()
def compile(
    graph: Annotated[Path, typer.Argument(help="Graph file.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Program file to write.")],
    board: BoardName = None,
    accelerator: AcceleratorFile = None,
    listing: Annotated[Path | None, typer.Option(help="Also write the disassembly.")] = None,
    thorough: Annotated[
        bool, typer.Option(help="Predict more orders of the instructions, keep the fastest (up to minutes).")
    ] = False,
    json: Json = False,
) -> None:
    """Compile an integer graph for an accelerator."""
    from . import api

    judge = api.frame_cycles(board) if thorough else None
    built = api.compiled(api.Graph.load(graph), api.make_accelerator(board, accelerator), judge=judge)
    program = built.program
    program.save(output)
    if listing is not None:
        api.write_listing(program, listing)
    value = {
        "program": str(output),
        "instructions": len(program.instructions),
        "weights_bytes": int(program.weights.size),
        "macs": sum(layer.macs for layer in program.layers),
        "accelerator": f"{program.accelerator.hash:016x}",
    }
    moved = {
        **built.traffic.to_dict(),
        "activations": built.traffic.activations,
        "activations_bound": built.activations_bound,
    }
    _emit(json, {**value, "traffic": moved}, {"Program": [value], "Off-chip bytes": [moved]})


@app.command()
def rtl(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the bundle to write.")],
    board: BoardName = None,
    accelerator: AcceleratorFile = None,
    set: Annotated[
        list[str] | None, typer.Option(help="Parameter to request, e.g. columns=8 or lanes.fixed8=16.")
    ] = None,
    program: Annotated[Path | None, typer.Option(help="Program for the testbench.")] = None,
    graph: Annotated[Path | None, typer.Option(help="Graph of the program: expected outputs.")] = None,
    images: Images = None,
    synthesis: Annotated[bool, typer.Option(help="Count resources with Yosys.")] = True,
    paths: Annotated[bool, typer.Option(help="List every module's longest path, in levels.")] = False,
    clock: Annotated[
        float | None, typer.Option(help="Place and route at this clock in MHz (ECP5; many minutes).")
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the placement: others end 10 to 20 % faster or slower.")
    ] = 1,
    json: Json = False,
) -> None:
    """Write Verilog and everything around it, and count its resources against the board's budget."""
    from . import api

    with _progress(json) as progress:
        result = api.rtl(
            output,
            board=board,
            accelerator=accelerator,
            requests=set or [],
            program=program,
            graph=graph,
            images=images,
            synthesis=synthesis,
            paths=paths,
            clock_mhz=clock,
            seed=seed,
            progress=progress,
        )
    tables = {"Resources": result["resources"], "Longest paths": result["paths"], "Clock": result["clock"]}
    _emit(json, result, tables, [result["verilog"]])


@app.command()
def sim(
    graph: Annotated[Path, typer.Argument(help="Graph file.")],
    program: Annotated[Path, typer.Argument(help="Program file.")],
    images: Images = None,
    level: Annotated[str, typer.Option(help="reference, functional, cycle or rtl.")] = "rtl",
    count: Annotated[int, typer.Option(min=1, help="Largest number of images.")] = 16,
    board: Annotated[str, typer.Option(help="Board whose clock gives the FPS.")] = "zcu102",
    latency: Latency = 60,
    interval: Interval = 1,
    refresh: Refresh = 0,
    json: Json = False,
) -> None:
    """Classify images on a simulated accelerator: predictions, latency, FPS and cycles per layer."""
    from . import api

    with _progress(json) as progress:
        result = api.sim(
            api.Graph.load(graph),
            api.Program.load(program),
            images,
            level=level,
            count=count,
            board=board,
            memory=_memory(latency, interval, refresh, 0.0, 0),
            progress=progress,
        )
    names = ("predictions", "layers", "frame", "memory")
    tables = {name.capitalize(): result[name] for name in names}
    _emit(json, result, tables)


@app.command()
def explain(
    program: Annotated[Path, typer.Argument(help="Program file.")],
    layer: Annotated[str | None, typer.Argument(help="One layer, with its instructions.")] = None,
    board: Annotated[str, typer.Option(help="Board whose memory the frame runs on.")] = "zcu102",
    json: Json = False,
) -> None:
    """Show where a frame's cycles went: computing, draining, waiting for memory or for a semaphore."""
    from .arch.program import Program
    from .explain import explain as explained

    result = explained(Program.load(program), layer, board=board)
    names = ("frame", "layers", "instructions")
    tables = {name.capitalize(): result.get(name, []) for name in names}
    facts = [f"{result['cycles']} cycles, utilization {result['utilization']}"]
    _emit(json, result, tables, facts)


@app.command()
def compare(
    graph: Annotated[Path, typer.Argument(help="Graph file.")],
    program: Annotated[Path, typer.Argument(help="Program file.")],
    images: Images = None,
    count: Annotated[int, typer.Option(min=1, help="Largest number of images.")] = 4,
    latency: Latency = 60,
    interval: Interval = 1,
    refresh: Refresh = 0,
    stall: Annotated[
        float, typer.Option(min=0, max=0.95, help="Probability of a random stall per channel.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the stalls.")] = 0,
    wave: Annotated[Path | None, typer.Option(help="Write a waveform (FST).")] = None,
    json: Json = False,
) -> None:
    """Run reference, functional, cycle model and Verilog side by side; a nonzero status tells of a difference."""
    from . import api

    with _progress(json) as progress:
        result = api.compare(
            api.Graph.load(graph),
            api.Program.load(program),
            images,
            count=count,
            memory=_memory(latency, interval, refresh, stall, seed),
            wave=wave,
            progress=progress,
        )
    _emit(json, result.to_json(), {"Simulators": result.rows()}, result.messages())
    if not result.equal:
        raise typer.Exit(1)


@app.command()
def fit(
    file: Annotated[
        Path | None, typer.Argument(help="Graph or ONNX model, instead of --model.", show_default=False)
    ] = None,
    board: Annotated[str, typer.Option(help="Board to fill.")] = "zcu102",
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            help="deit-tiny, deit-small, deit-base, resnet18 or mobilenet-v2 (shapes alone), digits-vit, digits-cnn, or "
            "file.py:function returning a torch module.",
        ),
    ] = None,
    input: Input = None,
    weights: Weights = None,
    images: Annotated[Path | None, typer.Option(help="Folder of calibration images.")] = None,
    mix: Annotated[
        list[str] | None,
        typer.Option(help="Ratio of rows, e.g. fixed8=1,fixed4=2; several may compete. Default: fixed8=1."),
    ] = None,
    activation_bits: Annotated[
        str, typer.Option(help="4 to 8, or by class of tensor, e.g. other=4,e=4; of a graph its own.")
    ] = "8",
    min_accuracy: Annotated[
        float | None,
        typer.Option(help="Least top-1 in per cent: of docs/results.md for a named network, else on --test."),
    ] = None,
    test: Annotated[Path | None, typer.Option(help="Labelled images; default: held-out digits.")] = None,
    set: Annotated[
        list[str] | None, typer.Option(help="Parameter that is not searched, e.g. drain=8.")
    ] = None,
    clock: Annotated[float | None, typer.Option(help="MHz; default: the board's.")] = None,
    lut: Annotated[float, typer.Option(min=1, max=100, help="Per cent of the board's LUTs.")] = 85,
    dsp: Annotated[float, typer.Option(min=1, max=100, help="Per cent of its DSPs.")] = 95,
    bram: Annotated[float, typer.Option(min=1, max=100, help="Per cent of its block RAM.")] = 90,
    evaluations: Annotated[int, typer.Option(min=4, help="Programs to compile and time.")] = 48,
    thorough: Annotated[
        bool,
        typer.Option(
            help="Choose the programs of the fastest among more orders: minutes for large networks."
        ),
    ] = False,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Accelerator file to write.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Plot of the designs, .png or .svg.")] = None,
    json: Json = False,
) -> None:
    """Search the fastest accelerator for a model within a board's budget, at an accuracy; print the Pareto front."""
    from . import api, networks
    from . import fit as fitting
    from .boards.search import Budget

    mixtures = [api.parse_mixture(text) for text in mix] if mix else None
    with _progress(json) as progress:
        shown = labelled = None
        if file is not None and file.suffix == ".graph":
            source = api.Graph.load(file)
        elif file is None and model in networks.NETWORKS:
            source = model
        else:
            source = api.source(_named(file, model), input, weights)
            shown = api.calibration_images(source, images)
            labelled = None if min_accuracy is None else api.labelled_images(source, test)
        found = fitting.fit(
            board,
            source,
            mixtures,
            budget=Budget(lut=lut / 100, dsp=dsp / 100, bram=bram / 100),
            requests=set or [],
            clock_mhz=clock,
            evaluations=evaluations,
            activation_bits=fitting.bits(activation_bits),
            calibration=shown,
            test=labelled,
            min_accuracy=min_accuracy,
            thorough=thorough,
            progress=progress,
        )
        if plot is not None:
            fitting.plot(found, plot)
        if output is not None:
            fitting.save(found, output)
    facts = [f"rows of the fastest: --rows {networks.named(found.search.best.rows.mixture)}"]
    facts += [f"{name}: {top1:.2f} % top-1" for name, top1 in found.accuracy.items()]
    facts.append(
        f"{len(found.search.designs)} designs judged; what was not could be at most {found.search.gap:.1%} faster"
    )
    _emit(json, found.to_json(), {f"Fastest on {board}, and smaller ones": found.rows()}, facts)


@app.command()
def boards(json: Json = False) -> None:
    """List the boards, their budgets and their default accelerators."""
    from . import api

    rows = api.boards()
    _emit(json, {"boards": rows}, {"Boards": rows})


@app.command()
def manual() -> None:
    """Print the instruction manual and the register map as Markdown."""
    from .arch import isa, registers

    sys.stdout.write(isa.manual() + "\n" + registers.markdown())


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for all results.")] = Path("build/demo"),
    json: Json = False,
) -> None:
    """The whole flow on a ViT and a CNN with real images; a nonzero status tells of a missed promise."""
    from . import demo as _demo

    with _progress(json) as progress:
        result = _demo.run(out, progress)
    _emit(json, result.summary, result.tables(), result.messages())
    if not result.passed:
        raise typer.Exit(1)


def main() -> None:
    """Entry point: one line for a user's mistake, never a traceback."""
    try:
        status = app(standalone_mode=False)
    except UserError as error:
        _err.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)
    except click.exceptions.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.exceptions.Abort, KeyboardInterrupt):
        sys.exit(130)
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
