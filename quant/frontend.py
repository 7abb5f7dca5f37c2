"""From any `torch.nn.Module` to the float graph, through `torch.export`.

The exported graph of core ATen operators is interpreted symbolically: parameters and what follows from them alone
are computed, data movements act on element numbers (`views`), and every other operator becomes nodes of the float
graph or a finding (`patterns`). An import is checked against the module before it is returned.
"""

from __future__ import annotations

import copy
import dataclasses
import operator
import warnings
from collections.abc import Mapping

import torch
from torch import fx, nn
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from ..arch.errors import UserError
from . import patterns_statistics as statistics
from .floatgraph import FloatGraph, Node
from .operands import Call
from .orders import dense
from .patterns import HANDLERS, MOVEMENTS, PASS_THROUGH, SHAPE_ONLY, SUPPORTED, remedy_for
from .sequences import in_sequence
from .views import Draft, Scores, Unsupported, View

__all__ = ["Finding", "UnsupportedModel", "check", "import_module"]

RESULTS = ("logits", "pooler_output", "image_embeds", "last_hidden_state")
"""Fields of a returned mapping, the first of which that is there is the model's result (`transformers`)."""

TOLERANCE = 1e-4
"""Largest difference between the import and the module, relative to the module's largest output."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """One operator that cannot be imported."""

    path: str
    """Module path, "" for the model itself."""
    op: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path or '(model)'}: {self.op}: {self.reason}; {self.remedy}"


class UnsupportedModel(UserError):
    """A model that cannot be imported; `findings` and the message list every offending operator."""

    def __init__(self, name: str, findings: list[Finding]):
        listed = "".join(f"\n  {finding}" for finding in findings)
        super().__init__(f"{name}: {len(findings)} operator(s) cannot be imported:{listed}")
        self.findings = findings


def check(module: nn.Module, sample: torch.Tensor) -> list[Finding]:
    """Every operator of the module that `import_module` would refuse; empty if it can be imported."""
    try:
        import_module(module, sample)
    except UnsupportedModel as error:
        return error.findings
    return []


def import_module(
    module: nn.Module, sample: torch.Tensor, name: str | None = None, *, tolerance: float | None = None
) -> FloatGraph:
    """The float graph of `module` for inference on images like `sample`, (N, C, H, W) float, preprocessed.

    The graph takes one image (H, W, C) at a time and its output is channels-last. The module is left as it is.
    Raises UnsupportedModel (every offending operator) or ValueError (unusable sample).
    """
    name = name or type(module).__name__
    if not isinstance(sample, torch.Tensor) or sample.dim() != 4 or not sample.is_floating_point():
        found = (
            f"{tuple(sample.shape)} {sample.dtype}"
            if isinstance(sample, torch.Tensor)
            else type(sample).__name__
        )
        raise ValueError(
            f"{name}: the sample must be a float tensor (N, C, H, W), not {found}; preprocess one image"
        )
    module, sample = copy.deepcopy(module).eval().float(), sample.detach().float()
    wrong = [key for key, value in module.state_dict().items() if not bool(torch.isfinite(value).all())]
    if wrong:
        raise UnsupportedModel(
            name,
            [Finding(key, "parameter", "holds NaN or infinity", "load the weights again") for key in wrong],
        )
    program, sample = _export(module, sample, name)
    batch, channels, height, width = sample.shape
    interpreter = _Interpreter(batch)
    source = Draft(kind="input", path="", shape=(height, width, channels))
    image = View(source, source.view(batch).index.permute(0, 3, 1, 2))
    result = interpreter.result(program, image)
    nodes = [] if result is None else _nodes(result.base, source)
    for node in nodes:
        if node.kind in statistics.STATISTICS:
            reason = "a statistic of channels is used outside a LayerNorm"
            interpreter.findings.append(Finding(node.name, node.kind, reason, "use LayerNorm or BatchNorm2d"))
    if interpreter.findings:
        raise UnsupportedModel(name, interpreter.findings)
    graph = in_sequence(FloatGraph(name=name, input_shape=source.shape, nodes=nodes))
    _verify(graph, module, sample, result, TOLERANCE if tolerance is None else tolerance)
    return graph


def _export(
    module: nn.Module, sample: torch.Tensor, name: str
) -> tuple[torch.export.ExportedProgram, torch.Tensor]:
    """The functional graph in which composite operators stay whole, and the sample of the batch it was taken for.

    Two images tell the batch axis from others; a model that insists on one image gets one.
    """
    failure: Exception | None = None
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its fused operator hides the layers
    try:
        for batch in (sample[:1].repeat(2, 1, 1, 1), sample[:1]):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    return torch.export.export(module, (batch,)).run_decompositions({}), batch
            except Exception as error:  # whatever the user's forward() or torch raises
                failure = failure or error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    reason = (
        f"{type(failure).__name__}: {str(failure).strip().splitlines()[0] if str(failure).strip() else ''}"
    )
    remedy = "forward(x) must run on the sample and choose its path by shapes, not by values of tensors"
    raise UnsupportedModel(name, [Finding("", "torch.export", reason[:300], remedy)])


class _Interpreter:
    """Evaluates a graph symbolically; goes on behind an unsupported operator, so that all are found."""

    def __init__(self, batch: int):
        self.batch = batch
        self.findings: list[Finding] = []
        self.names: dict[int, str] = {}

    def result(self, program: torch.export.ExportedProgram, image: View) -> View | None:
        """The value of the program's only output; None if there are findings."""
        values = {}
        placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
        for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
            if spec.kind == InputKind.USER_INPUT:
                values[node] = image
                continue
            target = spec.target
            value = program.state_dict.get(target, program.constants.get(target))
            values[node] = value.detach() if isinstance(value, torch.Tensor) else value
            self.names[id(values[node])] = target
        outputs = self.run(program.graph_module, values)
        specs = program.graph_signature.output_specs
        users = [o for o, spec in zip(outputs, specs, strict=True) if spec.kind == OutputKind.USER_OUTPUT]
        try:
            chosen = self.chosen(tree_unflatten(users, program.call_spec.out_spec))
            if not isinstance(chosen, View):
                raise Unsupported(
                    "returns what is no activation", "return one tensor computed from the image"
                )
            if chosen.base.kind == "input":
                raise Unsupported("computes nothing", "give a model with at least one layer")
            return dense(chosen, self.batch)
        except Unsupported as error:
            if not (error.layout and self.findings):
                self._report(Finding("", "output", error.reason, error.remedy))
            return None

    @staticmethod
    def chosen(returned: object) -> object:
        """The result among what a model returns: the only tensor, or the field of a mapping that classifies."""
        if isinstance(returned, Mapping):
            for key in RESULTS:
                if returned.get(key) is not None:
                    return returned[key]
        tensors = [value for value in tree_leaves(returned) if value is not None]
        if len(tensors) != 1:
            raise Unsupported(
                f"returns {len(tensors)} tensors", "return one tensor: wrap the model and return its logits"
            )
        return tensors[0]

    def run(self, module: fx.GraphModule, values: dict[fx.Node, object]) -> list[object]:
        """The graph's outputs for the values of its placeholders."""
        module.graph.eliminate_dead_code()
        for node in module.graph.nodes:
            if node.op == "get_attr":
                values[node] = getattr(module, node.target).detach()
            elif node.op == "call_function" and node.users:
                args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
                values[node] = self._call(node, args, kwargs)
            elif node.op == "output":
                return fx.map_arg(list(node.args[0]), values.__getitem__)
        raise AssertionError("a graph ends with its output")

    def _call(self, node: fx.Node, args: tuple, kwargs: dict) -> object:
        if node.target is operator.getitem:
            return args[0][args[1]]
        op = _op_name(node)
        path, leaf = _module_path(node)
        behind_another = any(_is_tainted(value) for value in tree_leaves((args, kwargs)))
        try:
            return self._evaluate(node, op, path, leaf, args, kwargs)
        except Unsupported as error:
            if not (error.layout and behind_another):
                where, what = error.origin or (path, op)
                self._report(Finding(where, what, error.reason, error.remedy))
        except (
            TypeError,
            ValueError,
            RuntimeError,
            IndexError,
        ) as error:  # a form that the handler does not know
            if not behind_another:
                reason = f"is used in a form that import does not know ({str(error).splitlines()[0][:120]})"
                self._report(Finding(path, op, reason, f"write it as {SUPPORTED}"))
        if any(isinstance(value, View | Scores) for value in tree_leaves((args, kwargs))):
            return tree_map(self._opaque, node.meta["val"])
        return tree_map(lambda meta: torch.zeros(meta.shape, dtype=meta.dtype), node.meta["val"])

    def _evaluate(self, node: fx.Node, op: str, path: str, leaf: bool, args: tuple, kwargs: dict) -> object:
        symbols = [value for value in tree_leaves((args, kwargs)) if isinstance(value, View | Scores)]
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()) and op not in HANDLERS:
            raise Unsupported("is random at inference", "remove it, or guard it by self.training")
        if not symbols:
            return node.target(*args, **kwargs)
        if op in PASS_THROUGH:
            return args[0]
        if op in SHAPE_ONLY:
            like = tree_map(
                lambda v: torch.empty(v.index.shape) if isinstance(v, View | Scores) else v, (args, kwargs)
            )
            return node.target(*like[0], **like[1])
        if op in MOVEMENTS:
            return _moved(node, symbols, args, kwargs)
        shape = tuple(next(value for value in tree_leaves(node.meta["val"])).shape)
        call = Call(batch=self.batch, path=path, op=op, leaf=leaf, shape=shape, names=self.names)
        statistic = statistics.matched(call, args, kwargs)
        if statistic is not None:
            return statistic
        handler = HANDLERS.get(op)
        if handler is None:
            return self._decomposed(node, op, args, kwargs)
        return handler(call, *args, **kwargs)

    def _decomposed(self, node: fx.Node, op: str, args: tuple, kwargs: dict) -> object:
        """A composite operator without handler (einsum ...) through its own decomposition, if all of that works."""
        refusal = Unsupported("the operator has no hardware", remedy_for(op))
        target = node.target
        if not (isinstance(target, torch._ops.OpOverload) and target._can_decompose()):
            raise refusal
        metas, spec = tree_flatten(fx.map_arg((node.args, node.kwargs), lambda source: source.meta["val"]))
        places = [place for place, meta in enumerate(metas) if isinstance(meta, torch.Tensor)]

        def decompose(*tensors: torch.Tensor) -> list[object]:
            filled = list(metas)
            for place, tensor in zip(places, tensors, strict=True):
                filled[place] = tensor
            inner_args, inner_kwargs = tree_unflatten(filled, spec)
            return tree_leaves(target.decompose(*inner_args, **inner_kwargs))

        stand_ins = [torch.empty(metas[place].shape, dtype=metas[place].dtype) for place in places]
        inner = make_fx(decompose, tracing_mode="fake")(*stand_ins)
        for inner_node in inner.graph.nodes:
            inner_node.meta["nn_module_stack"] = node.meta.get("nn_module_stack", {})
        placeholders = [inner_node for inner_node in inner.graph.nodes if inner_node.op == "placeholder"]
        leaves = tree_leaves((args, kwargs))
        known = len(self.findings)
        outputs = self.run(inner, dict(zip(placeholders, (leaves[place] for place in places), strict=True)))
        if len(self.findings) > known:
            del self.findings[known:]
            raise refusal
        return outputs[0] if isinstance(node.meta["val"], torch.Tensor) else outputs

    def _opaque(self, meta: object) -> object:
        """A stand-in for what an unsupported operator would have returned, in the likeliest order of elements."""
        if not isinstance(meta, torch.Tensor):
            return meta
        batched = meta.dim() > 0 and meta.shape[0] == self.batch
        if batched and meta.dim() == 4:
            _, channels, height, width = meta.shape
            base = Draft(kind="opaque", path="", shape=(height, width, channels))
            return View(base, base.view(self.batch).index.permute(0, 3, 1, 2))
        size = max(1, meta.numel() // self.batch)
        shape = tuple(meta.shape[1:]) if batched and meta.dim() > 2 else (1, size)
        return View(
            Draft(kind="opaque", path="", shape=shape), torch.arange(meta.numel()).reshape(meta.shape)
        )

    def _report(self, finding: Finding) -> None:
        if finding not in self.findings:
            self.findings.append(finding)


def _moved(node: fx.Node, symbols: list[View | Scores], args: tuple, kwargs: dict) -> object:
    first = symbols[0]
    same = all(isinstance(s, View) and isinstance(first, View) and s.base is first.base for s in symbols)
    if len(symbols) > 1 and not same:
        raise Unsupported("stacks activations of different layers", "keep them apart, or add them")
    args, kwargs = tree_map(
        lambda v: v.index.contiguous() if isinstance(v, View | Scores) else v, (args, kwargs)
    )
    moved = node.target(*args, **kwargs)
    return first.at(moved) if isinstance(moved, torch.Tensor) else [first.at(index) for index in moved]


def _is_tainted(value: object) -> bool:
    return (isinstance(value, View) and value.base.tainted) or (isinstance(value, Scores) and value.tainted)


def _op_name(node: fx.Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return schema.name.removeprefix("aten::") if schema is not None else getattr(node.target, "__name__", "?")


def _module_path(node: fx.Node) -> tuple[str, bool]:
    """The path of the module that an operator stands in, and whether that is a layer of torch's own."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    if not stack:
        return "", False
    path, kind = stack[-1]
    kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
    path = path.removeprefix("L['self']").lstrip(".").partition("@")[0]
    composite = ("MultiheadAttention", "TransformerEncoderLayer", "TransformerEncoder", "Sequential")
    return path, bool(path) and kind.startswith("torch.nn.") and not kind.endswith(composite)


def _nodes(output: Draft, source: Draft) -> list[Node]:
    """The drafts that the output needs in execution order, with unique names."""
    order: list[Draft] = []
    seen: set[Draft] = {source}
    stack = [(output, False)]
    while stack:
        draft, ready = stack.pop()
        if ready:
            order.append(draft)
        elif draft not in seen:
            seen.add(draft)
            stack.append((draft, True))
            stack.extend((parent, False) for parent in reversed(draft.inputs))
    names: dict[Draft, str] = {source: "input"}
    for draft in order:
        name, count = draft.path or draft.kind, 1
        while name in names.values():
            name, count = f"{draft.path or draft.kind}_{count}", count + 1
        names[draft] = name
    return [
        Node(
            kind=draft.kind,
            name=names[draft],
            inputs=tuple(names[parent] for parent in draft.inputs),
            shape=tuple(int(extent) for extent in draft.shape),
            params={
                key: value.detach().contiguous() if key == "index" else value.detach().float().contiguous()
                for key, value in draft.params.items()
            },
            attrs={key: value for key, value in draft.attrs.items() if key != "tainted"},
        )
        for draft in order
    ]


@torch.no_grad()
def _verify(
    graph: FloatGraph, module: nn.Module, sample: torch.Tensor, result: View, tolerance: float
) -> None:
    """Compare with the module on the sample and on noise; ValueError where they differ."""
    noise = torch.randn(sample.shape, generator=torch.Generator().manual_seed(0))
    for images in (sample, noise):
        wanted = _Interpreter.chosen(module(images))
        found = graph.run(images.permute(0, 2, 3, 1).contiguous()).reshape(-1)[result.index]
        difference = (found - wanted).abs().max().item()
        if not difference <= tolerance * max(wanted.abs().max().item(), 1e-6):
            raise ValueError(
                f"{graph.name}: the imported graph must equal the module within {tolerance:g} of its largest output, "
                f"but differs by {difference:g}; forward() must depend on its input alone"
            )
