"""The import of torch modules: equal to the module, whatever the spelling; and every refusal in one list."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from terrazzo.quant.frontend import UnsupportedModel, check, import_module

TOKENS, DIM, HEADS = 16, 24, 3
SAMPLE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def imported(module: nn.Module, sample: torch.Tensor = SAMPLE):
    """The graph of a module with random weights, after comparing it with the module on three other images."""
    torch.manual_seed(0)
    for value in [*module.parameters(), *module.buffers()]:
        if value.is_floating_point():
            nn.init.uniform_(value, 0.1, 0.5) if value.dim() < 2 else nn.init.normal_(value, std=0.3)
    graph = import_module(module, sample)
    images = torch.randn(3, *sample.shape[1:])
    with torch.no_grad():
        wanted = module.eval()(images)
    found = graph.run(images.permute(0, 2, 3, 1).contiguous())
    if wanted.dim() == 4:
        wanted = wanted.permute(0, 2, 3, 1)
    assert found.numel() == wanted.numel()
    torch.testing.assert_close(
        found.reshape(-1), wanted.reshape(-1), rtol=1e-4, atol=1e-4 * wanted.abs().max().item()
    )
    assert len({node.name for node in graph.nodes}) == len(graph.nodes)
    for node in graph.nodes:
        for key, value in node.params.items():
            assert value.dtype == (torch.int64 if key == "index" else torch.float32)
    return graph


def kinds(graph) -> list[str]:
    return [node.kind for node in graph.nodes]


class Tokens(nn.Module):
    """Patches of 2 x 2 as (N, 16, 24) tokens, then `attention`, then a projection."""

    def __init__(self, attention: nn.Module):
        super().__init__()
        self.embed = nn.Conv2d(3, DIM, 2, 2)
        self.attn = attention
        self.proj = nn.Linear(DIM, DIM)

    def forward(self, x):
        return self.proj(self.attn(self.embed(x).flatten(2).transpose(1, 2)))


# Attention: how q, k and v come out of their projections


class Fused(nn.Module):
    """One projection, taken apart by `split`: (N, T, 3 * DIM) to three (N, HEADS, T, DIM / HEADS)."""

    def __init__(self, split, bias=True):
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * DIM, bias=bias)
        self.split = split

    def forward(self, x):
        q, k, v = self.split(self.qkv(x))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)


def _by_heads(x):
    return x.view(x.shape[0], x.shape[1], HEADS, DIM // HEADS).transpose(1, 2)


SPLITS = {
    "timm": lambda y: y.reshape(y.shape[0], -1, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4).unbind(0),
    "indexing": lambda y: tuple(
        y.reshape(y.shape[0], -1, 3, HEADS, 8).permute(2, 0, 3, 1, 4)[i] for i in range(3)
    ),
    "chunk": lambda y: tuple(map(_by_heads, y.chunk(3, dim=-1))),
    "split": lambda y: tuple(map(_by_heads, y.split(DIM, dim=2))),
    "slices": lambda y: tuple(_by_heads(y[..., i * DIM : (i + 1) * DIM]) for i in range(3)),
    "heads first": lambda y: y.view(y.shape[0], -1, HEADS, 3, 8).permute(3, 0, 2, 1, 4).unbind(),
    "heads first chunk": lambda y: y.view(y.shape[0], -1, HEADS, 24).transpose(1, 2).chunk(3, dim=-1),
    "heads last": lambda y: y.view(y.shape[0], -1, 8, 3, HEADS).permute(3, 0, 4, 1, 2).unbind(0),
    "unflatten": lambda y: y.unflatten(-1, (3, HEADS, 8)).movedim(2, 0).transpose(2, 3).unbind(0),
}


@pytest.mark.parametrize("split", SPLITS)
def test_fused_projection(split):
    graph = imported(Tokens(Fused(SPLITS[split], bias=split != "chunk")))
    assert kinds(graph) == ["conv", "reshape", "linear", "linear", "linear", "attention", "linear"]
    assert [node.name for node in graph.nodes[2:5]] == ["attn.qkv.q", "attn.qkv.k", "attn.qkv.v"]
    assert all(node.params["weight"].shape == (DIM, DIM) for node in graph.nodes[2:5])
    assert graph.nodes[5].attrs == {"heads": HEADS, "windows": 1, "scale": pytest.approx(8**-0.5)}


class Separate(nn.Module):
    """Three projections and the product spelled by `product(q, k, v)` of (N, HEADS, T, head_dim)."""

    def __init__(self, product):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(DIM, DIM) for _ in range(3))
        self.product = product

    def forward(self, x):
        y = self.product(*(_by_heads(layer(x)) for layer in (self.q, self.k, self.v)))
        return y.transpose(1, 2).flatten(2)


def _bmm(q, k, v):
    q, k, v = (x.reshape(-1, TOKENS, 8) for x in (q, k, v))
    return torch.bmm(F.softmax(torch.bmm(q, k.transpose(1, 2)) / math.sqrt(8), -1), v).view(
        -1, HEADS, TOKENS, 8
    )


def _baddbmm(q, k, v):
    q, k, v = (x.reshape(-1, TOKENS, 8) for x in (q, k, v))
    scores = torch.baddbmm(torch.zeros(q.shape[0], TOKENS, TOKENS), q, k.transpose(1, 2), beta=0, alpha=0.3)
    return (scores.softmax(-1) @ v).view(-1, HEADS, TOKENS, 8)


PRODUCTS = {
    "sdpa": (F.scaled_dot_product_attention, 8**-0.5),
    "sdpa scale": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=0.2), 0.2),
    "scaled scores": (lambda q, k, v: (q @ k.transpose(-2, -1) * 0.4).softmax(dim=-1) @ v, 0.4),
    "divided scores": (lambda q, k, v: torch.softmax(q @ k.mT / math.sqrt(8), dim=3).matmul(v), 8**-0.5),
    "scaled query": (lambda q, k, v: F.dropout(((q * 0.4) @ k.mT).softmax(-1), 0.1, training=False) @ v, 1.0),
    "permuted key": (lambda q, k, v: torch.matmul(q, k.permute(0, 1, 3, 2)).softmax(-1) @ v, 1.0),
    "bmm": (_bmm, 8**-0.5),
    "baddbmm": (_baddbmm, 0.3),
    "einsum": (
        lambda q, k, v: torch.einsum(
            "bhqk,bhkd->bhqd", (torch.einsum("bhqd,bhkd->bhqk", q, k) * 0.4).softmax(-1), v
        ),
        0.4,
    ),
}


@pytest.mark.parametrize("product", PRODUCTS)
def test_attention_product(product):
    spelled, scale = PRODUCTS[product]
    graph = imported(Tokens(Separate(spelled)))
    assert kinds(graph).count("attention") == 1 and kinds(graph).count("linear") == 4
    attention = next(node for node in graph.nodes if node.kind == "attention")
    plain = {
        "heads": HEADS,
        "windows": 1,
        "scale": pytest.approx(scale),
        "scores": None,
        "probabilities": None,
    }
    assert {"scores": None, "probabilities": None} | attention.attrs == plain
    assert attention.inputs == ("attn.q", "attn.k", "attn.v")


def _partitioned(x):
    """(N, 16, C) as rolled windows of 2 x 2 pixels: (N * 4, 4, C)."""
    x = x.unflatten(1, (4, 4)).roll((-1, -1), (1, 2))
    return x.unflatten(1, (2, 2)).unflatten(3, (2, 2)).transpose(2, 3).flatten(3, 4).flatten(0, 2)


def _reversed(x):
    x = x.unflatten(0, (-1, 2, 2)).unflatten(3, (2, 2)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
    return x.roll((1, 1), (1, 2)).flatten(1, 2)


class Windows(nn.Module):
    """Attention inside shifted windows of a map, with a bias and a mask as Swin has them."""

    def __init__(self, early: bool):
        super().__init__()
        self.embed, self.early = nn.Conv2d(3, DIM, 2, 2), early
        self.qkv, self.proj, self.norm = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM), nn.LayerNorm(DIM)
        self.table = nn.Parameter(torch.randn(HEADS, 4, 4))

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        y = self.norm(tokens)
        y = self.qkv(_partitioned(y)) if self.early else _partitioned(self.qkv(y))
        q, k, v = y.unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT / 2 + self.table
        mask = torch.zeros(4, 1, 4, 4)
        mask[1:, :, :2, 2:] = -100.0
        scores = (scores.unflatten(0, (-1, 4)) + mask).flatten(0, 1)
        y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return tokens + _reversed(self.proj(y))


@pytest.mark.parametrize("early", [True, False])
def test_shifted_windows(early):
    graph = imported(Windows(early))
    assert kinds(graph).count("gather") == 2, "one in front of the LayerNorm, one back"
    attention = next(node for node in graph.nodes if node.kind == "attention")
    assert attention.attrs["windows"] == 4 and attention.params["bias"].shape == (4, HEADS, 4, 4)
    names = {node.name: node for node in graph.nodes}
    before = {names[names[name].inputs[0]].name for name in attention.inputs}
    assert [names[names[name].inputs[0]].kind for name in before] == ["gather"]


MASKS = {
    "mask": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.eye(TOKENS)), (1, 1)),
    "boolean": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, torch.eye(TOKENS) > 0), (1, 1)),
    "causal": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), (1, 1)),
    "position bias": (lambda q, k, v: (q @ k.mT + torch.eye(TOKENS)).softmax(-1) @ v, (1, 1)),
    "bias of heads": (
        lambda q, k, v: (
            ((q @ k.mT + torch.arange(3.0).view(3, 1, 1) * torch.eye(TOKENS)) / 2).softmax(-1) @ v
        ),
        (1, HEADS),
    ),
    "scale of heads": (lambda q, k, v: ((q @ k.mT) * torch.arange(3.0).view(3, 1, 1)).softmax(-1) @ v, None),
    "zero bias": (lambda q, k, v: (q @ k.mT - torch.zeros(TOKENS)).softmax(-1) @ v, None),
    "shared keys": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True),
        None,
    ),
    "wide values": (lambda q, k, v: (q[..., :3] @ k[..., :3].mT).softmax(-1) @ v, None),
    "wide keys": (
        lambda q, k, v: F.pad((q @ k.mT).softmax(-1) @ v[..., :5], (0, 3)),
        None,
    ),
    "every other query": (
        lambda q, k, v: torch.cat([(q[:, :, i::2] @ k.mT).softmax(-1) @ v for i in (0, 1)], 2),
        None,
    ),
}


@pytest.mark.parametrize("mask", MASKS)
def test_mask_or_bias(mask):
    spelled, extents = MASKS[mask]
    graph = imported(Tokens(Separate(spelled)))
    bias = next(node for node in graph.nodes if node.kind == "attention").params.get("bias")
    assert (None if bias is None else tuple(bias.shape[:2])) == extents


class TorchAttention(nn.Module):
    def __init__(self, batch_first, need_weights, bias=True):
        super().__init__()
        self.mha = nn.MultiheadAttention(DIM, HEADS, batch_first=batch_first, bias=bias, dropout=0.1)
        self.batch_first, self.need_weights = batch_first, need_weights

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        y = self.mha(x, x, x, need_weights=self.need_weights)[0]
        return y if self.batch_first else y.transpose(0, 1)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_multihead_attention(batch_first, need_weights, frozen):
    module = Tokens(TorchAttention(batch_first, need_weights, bias=not frozen)).requires_grad_(not frozen)
    graph = imported(module)
    assert kinds(graph) == ["conv", "reshape", "linear", "linear", "linear", "attention", "linear", "linear"]
    assert graph.nodes[5].attrs["heads"] == HEADS


def test_cross_attention_has_inputs_of_its_own():
    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, DIM, 2, 2), nn.Conv2d(3, DIM, 4, 4)
            self.mha = nn.MultiheadAttention(DIM, HEADS, batch_first=True)

        def forward(self, x):
            a, b = (conv(x).flatten(2).mT for conv in (self.a, self.b))
            return self.mha(a, b, b)[0]

    graph = imported(Cross())
    shapes = {node.name: node.shape for node in graph.nodes}
    attention = next(node for node in graph.nodes if node.kind == "attention")
    assert [shapes[name] for name in attention.inputs] == [(16, DIM), (4, DIM), (4, DIM)]


@pytest.mark.parametrize("norm_first", [True, False])
def test_transformer_encoder(norm_first):
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 40, 0.1, "gelu", batch_first=True, norm_first=norm_first)
    graph = imported(Tokens(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)))
    assert kinds(graph).count("attention") == 2 and kinds(graph).count("layernorm") == 4


# Tokens, pixels and heads of classifiers


class Body(nn.Module):
    """A convolution and whatever `function(self, x)` does with its (N, 16, 4, 4) output."""

    def __init__(self, function, **layers):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = function

    def forward(self, x):
        return self.function(self, self.conv(x))


HEADS_OF_CLASSIFIERS = {
    "flatten": (lambda s, x: s.fc(x.flatten(1)), 256),
    "view": (lambda s, x: s.fc(x.view(x.size(0), -1)), 256),
    "flatten channels last": (lambda s, x: s.fc(x.permute(0, 2, 3, 1).flatten(1)), 256),
    "adaptive": (lambda s, x: s.fc(F.adaptive_avg_pool2d(x, 1).flatten(1)), 16),
    "adaptive 2": (lambda s, x: s.fc(torch.flatten(F.adaptive_avg_pool2d(x, (2, 2)), 1)), 64),
    "adaptive max": (lambda s, x: s.fc(F.adaptive_max_pool2d(x, 2).flatten(1)), 64),
    "squeeze": (lambda s, x: s.fc(F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1)), 16),
    "mean of pixels": (lambda s, x: s.fc(x.mean([2, 3])), 16),
    "mean twice named": (lambda s, x: s.fc(x.mean((-1, -2), keepdim=True)[:, :, 0, 0]), 16),
    "mean of flat pixels": (lambda s, x: s.fc(x.flatten(2).mean(-1)), 16),
    "mean of tokens": (lambda s, x: s.fc(x.flatten(2).transpose(1, 2).mean(dim=1)), 16),
    "some tokens": (lambda s, x: s.fc(x.flatten(2).transpose(1, 2)[:, 1:5].mean(dim=1)), 16),
    "first token": (lambda s, x: s.fc(x.flatten(2).transpose(1, 2)[:, 0]), 16),
    "selected token": (lambda s, x: s.fc(x.flatten(2).permute(2, 0, 1).select(0, 3)), 16),
    "matmul": (lambda s, x: x.mean((2, 3)) @ s.fc.weight.t() + s.fc.bias, 16),
    "addmm": (lambda s, x: torch.addmm(s.fc.bias, x.mean((2, 3)), s.fc.weight.t()), 16),
    "two averaged heads": (lambda s, x: (s.fc(x.mean((2, 3))) + s.fc(x[:, :, 0, 0])) / 2, 16),
    "pixelwise": (lambda s, x: s.fc(x.permute(0, 2, 3, 1)).mean((1, 2)), 16),
}


@pytest.mark.parametrize("head", HEADS_OF_CLASSIFIERS)
def test_classifier_head(head):
    function, width = HEADS_OF_CLASSIFIERS[head]
    graph = imported(Body(function, fc=nn.Linear(width, 10)))
    layers = 2 if head == "two averaged heads" else 1
    assert kinds(graph).count("linear") == layers
    assert kinds(graph).count("add") == layers - 1, "a bias belongs into its layer"


@pytest.mark.parametrize(
    "style", ["add then cat", "cat then add", "sequence first", "two tokens", "no expand"]
)
def test_class_token_and_position_embedding(style):
    class Embedding(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Conv2d(3, DIM, 4, 4)
            self.token, self.token2 = (nn.Parameter(torch.randn(1, 1, DIM)) for _ in range(2))
            self.position = nn.Parameter(torch.randn(1, 5, DIM))
            self.fc = nn.Linear(DIM, 10)

        def forward(self, x):
            x = self.embed(x).flatten(2).transpose(1, 2)
            token = self.token.expand(x.shape[0], -1, -1)
            if style == "add then cat":
                x = x + self.position[:, 1:]
                return self.fc(torch.cat((token + self.position[:, :1], x), dim=1)[:, 0])
            if style == "cat then add":
                x = torch.cat([token, x], 1) + self.position
            if style == "sequence first":
                x = torch.cat([token.transpose(0, 1), x.transpose(0, 1)]) + self.position.transpose(0, 1)
                return self.fc(x[0])
            if style == "two tokens":
                x = torch.cat([token, self.token2.repeat(x.shape[0], 1, 1), x], dim=-2)
            if style == "no expand":
                x = torch.hstack((self.token + x.new_zeros(x.shape[0], 1, DIM), x))
            return self.fc(x.mean(1))

    graph = imported(Embedding())
    tokens = next(node for node in graph.nodes if node.kind == "tokens")
    assert tokens.params["prefix"].shape == ((2 if style == "two tokens" else 1), DIM)
    assert tokens.shape == (6 if style == "two tokens" else 5, DIM)


# Convolutions, normalization, activations, pooling


def _conv(*args, **kwargs):
    return lambda: nn.Conv2d(*args, **kwargs)


CONVOLUTIONS = {
    "plain": _conv(3, 8, 3),
    "no bias": _conv(3, 8, 3, bias=False),
    "rectangle": _conv(3, 5, (1, 3), stride=(2, 1), padding=(0, 2)),
    "same": _conv(3, 8, 3, padding="same"),
    "same even": _conv(3, 8, 4, padding="same"),
    "valid": _conv(3, 8, 2, padding="valid"),
    "depthwise": _conv(3, 6, 3, groups=3, padding=1),
    "groups": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=4)),
    "zero pad": lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 8, 3, stride=2)),
    "conv bn": lambda: nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
    "bn before conv": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 3)),
    "bn twice": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.BatchNorm2d(8, affine=False)),
    "bn after pool": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.MaxPool2d(2), nn.BatchNorm2d(8)),
    "grouped bn": lambda: nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6)),
    "max pool": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.MaxPool2d(3, 2, 1)),
    "avg pool": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.AvgPool2d((2, 4), (2, 1))),
    "avg pool pad": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.AvgPool2d(3, 2, 1)),
    "ceil": lambda: nn.MaxPool2d(3, ceil_mode=True),
    "max pool of zeros": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ZeroPad2d((1, 0, 1, 0)), nn.MaxPool2d(2)
    ),
    "avg pool of zeros": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ZeroPad2d((1, 0, 1, 0)), nn.AvgPool2d(2)
    ),
    "zero pad and act": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ZeroPad2d((1, 0, 1, 0)), nn.Sigmoid()),
    "crop": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.ZeroPad2d((-1, 0, -1, 2)), nn.Conv2d(8, 4, 3)),
    "dilation": _conv(3, 8, 3, dilation=2, padding="same"),
    "dilated rectangle": _conv(3, 8, (3, 2), dilation=(2, 3), stride=2, padding=1),
    "ceil without need": lambda: nn.MaxPool2d(2, ceil_mode=True),
    "inplace": lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Hardswish(inplace=True)),
}


@pytest.mark.parametrize("layer", CONVOLUTIONS)
def test_convolution(layer):
    imported(CONVOLUTIONS[layer]())


def test_batch_norm_vanishes_into_its_convolution():
    graph = imported(CONVOLUTIONS["conv bn"]())
    assert [(node.kind, node.name) for node in graph.nodes] == [("conv", "0"), ("act", "2")]


ACTIVATIONS = {
    "relu": nn.ReLU(),
    "relu6": nn.ReLU6(),
    "hardtanh": nn.Hardtanh(0.0, 6.0),
    "clamp": lambda x: x.clamp(0, 6),
    "clamp_min": lambda x: torch.clamp_min(x, 0),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "silu": nn.SiLU(),
    "swish": lambda x: x * torch.sigmoid(x),
    "sigmoid": nn.Sigmoid(),
    "tanh": torch.tanh,
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(),
}


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_activation(act):
    graph = imported(Body(lambda s, x: ACTIVATIONS[act](x * 4)))
    assert kinds(graph) == ["conv", "act"]


def _layernorm(x, dim):
    centred = x - x.mean(dim, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(dim, keepdim=True) + 1e-4)


BODIES = {
    "residual": lambda s, x: F.relu(x + s.layer(x)),
    "add function": lambda s, x: torch.add(s.layer(x), x, alpha=0.5),
    "subtract": lambda s, x: s.layer(x) - x,
    "constant minus": lambda s, x: 1.5 - s.layer(x),
    "layer scale": lambda s, x: x + s.layer(x) * torch.linspace(0.1, 1, 16).view(16, 1, 1),
    "map constant": lambda s, x: s.layer(x) + torch.linspace(0, 1, 16).view(4, 4),
    "affine input": lambda s, x: s.layer((F.relu(x) - 0.3) / 0.2),
    "chunk add": lambda s, x: torch.add(*s.layer(x).chunk(2, dim=1)),
    "two layouts": lambda s, x: (
        x.permute(0, 2, 3, 1) + s.layer(x).flatten(2).transpose(1, 2).unflatten(1, (4, 4))
    ).movedim(-1, 1),
    "zero pad": lambda s, x: s.layer(F.pad(x, (0, 0, 0, 0))),
    "cat back": lambda s, x: s.layer(torch.cat(x.split(8, dim=1), 1)),
    "channels first norm": lambda s, x: s.layer(
        F.layer_norm(x.movedim(1, -1), (16,), eps=1e-3).movedim(-1, 1)
    ),
    "channels of an activation": lambda s, x: F.relu(x)[:, :4],
    "gate": lambda s, x: x * s.layer(x),
    "gate of tokens": lambda s, x: x.flatten(2).mT * s.layer(x).permute(0, 2, 3, 1).flatten(1, 2),
    "gate of channels": lambda s, x: s.layer(x.mean((2, 3), keepdim=True)).sigmoid() * x,
    "gate of positions": lambda s, x: s.layer(x)[:, 3:4] * x,
    "square": lambda s, x: s.layer(x) ** 2 + x.square(),
    "quick gelu": lambda s, x: s.layer(x * torch.sigmoid(1.702 * x)),
    "sum with a mean": lambda s, x: x + s.layer(x.mean((2, 3), keepdim=True)),
    "means of rows": lambda s, x: s.layer(x.mean(2, keepdim=True)),
    "means of columns": lambda s, x: s.layer(x).mean(3).mT,
    "maxima of rows": lambda s, x: s.layer(x).amax(3).mT,
    "sum of pixels": lambda s, x: s.layer(x).sum((2, 3)),
    "concatenated layers": lambda s, x: torch.cat([x, s.layer(x), F.relu(x)], 1),
    "concatenated tokens": lambda s, x: torch.cat([x.flatten(2), s.layer(x).flatten(2)], 2).mT,
    "concatenated means": lambda s, x: torch.cat([x.mean((2, 3)), s.layer(x).amax((2, 3))], -1),
    "stacked": lambda s, x: s.layer(torch.stack([x[:, :8], F.relu(x)[:, 8:]], 1).flatten(1, 2)),
    "shuffled channels": lambda s, x: s.layer(x.unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)),
    "shuffled channels of an activation": lambda s, x: s.layer(
        F.relu(x).unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2)
    ),
    "shuffled channels of a sum": lambda s, x: s.layer(F.max_pool2d(x + s.layer(x), 1).flip(1)),
    "flipped": lambda s, x: s.layer(x.flip(2)) + x.roll(1, 3),
    "strided": lambda s, x: s.layer(x[:, :, ::2, 1::2]),
    "windows": lambda s, x: F.fold(F.unfold(s.layer(x), 2, stride=2).relu(), 4, 2, stride=2),
    "padded windows": lambda s, x: s.layer(F.unfold(F.relu(x), 1, padding=1).unflatten(2, (6, 6))),
    "patches as channels": lambda s, x: (
        F.pixel_unshuffle(s.layer(x), 2).flatten(2).mT @ s.layer.weight[:, :, 0, 0].repeat(4, 1)
    ),
    "map of constants": lambda s, x: F.relu(x) * torch.linspace(0, 1, 16).view(4, 4) + 0.1,
    "scaled tokens": lambda s, x: F.relu(x).flatten(2).mT * torch.linspace(-1, 1, 16) + 0.5,
    "spelled layernorm": lambda s, x: s.layer(_layernorm(x, 1)) * 0.5 + 1,
    "spelled layernorm of tokens": lambda s, x: _layernorm(s.layer(x).flatten(2).mT, -1) * torch.ones(16) + 1,
    "spelled by var": lambda s, x: s.layer(
        (x - x.mean(1, keepdim=True)) * (x.var(1, keepdim=True, unbiased=False) + 1e-3).rsqrt()
    ),
    "unit vectors": lambda s, x: F.normalize(s.layer(x).flatten(2).mT, dim=-1),
    "unit vectors of heads": lambda s, x: F.normalize(s.layer(x).unflatten(1, (2, 8)), dim=2).flatten(1, 2),
    "unit vectors of an activation": lambda s, x: s.layer(F.normalize(F.relu(x) + 1, dim=1)),
    "dtype and identity": lambda s, x: s.layer(x.to(torch.float32).contiguous().clone().detach()),
}


@pytest.mark.parametrize("body", BODIES)
def test_elementwise(body):
    graph = imported(Body(BODIES[body], layer=nn.Conv2d(16, 16, 1)))
    plain = ("residual", "add function", "layer scale", "chunk add", "channels first norm", "gate", "square")
    assert not {"reshape", "gather", "concat"} & set(kinds(graph)) or body not in plain


class Gated(nn.Module):
    """x times what a squeeze-and-excitation branch makes of it."""

    def __init__(self, *layers, spell=lambda gate, x: x * gate):
        super().__init__()
        self.branch, self.spell = nn.Sequential(*layers), spell

    def forward(self, x):
        return self.spell(self.branch(x), x)


class LayerScale(nn.Module):
    def __init__(self, layer, width):
        super().__init__()
        self.layer, self.gamma, self.drop = layer, nn.Parameter(torch.ones(width)), nn.Dropout(0.1)

    def forward(self, x):
        return x + self.drop(self.layer(x) * self.gamma)


class DropPath(nn.Module):
    """Stochastic depth as timm has it."""

    def forward(self, x):
        if not self.training:
            return x
        return x * x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(0.9)


class Channels(nn.Module):
    """LayerNorm of channels-first images, spelled as ConvNeXt's authors did."""

    def __init__(self, width):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class SwiGLU(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.value, self.out = nn.Linear(DIM, 32), nn.Linear(DIM, 32), nn.Linear(32, DIM)

    def forward(self, x):
        return self.out(F.silu(self.gate(x)) * self.value(x))


_SE = (nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 4, 1), nn.SiLU(), nn.Conv2d(4, 16, 1), nn.Sigmoid())
_FLAT = (
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 16), nn.Hardsigmoid()
)  # fmt: skip
BLOCKS = {
    "se": (Gated(*_SE), {"avgpool": 1, "conv": 3, "act": 2, "multiply": 1}),
    "se of a view": (
        Gated(*_FLAT, spell=lambda gate, x: x * gate.view(x.size(0), -1, 1, 1)),
        {"avgpool": 1, "linear": 2, "act": 2, "multiply": 1},
    ),
    "se expanded": (
        Gated(*_SE, spell=lambda gate, x: gate.expand_as(x).mul(x)),
        {"avgpool": 1, "conv": 3, "act": 2, "multiply": 1},
    ),
    "drop path": (nn.Sequential(nn.ReLU(), DropPath()), {"conv": 1, "act": 1}),
    "channels-first norm": (Channels(16), {"conv": 1, "layernorm": 1}),
    "depthwise separable": (
        nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU6()),
        {"conv": 2, "act": 1},
    ),
}


@pytest.mark.parametrize("block", BLOCKS)
def test_block_of_a_convolutional_network(block):
    module, counts = BLOCKS[block]
    graph = imported(Body(lambda s, x: s.layer(x), layer=module))
    assert not {"reshape", "gather", "add"} & set(kinds(graph))
    assert {kind: kinds(graph).count(kind) for kind in counts} == counts


TOKEN_BLOCKS = {
    "layer scale": (LayerScale(nn.Linear(DIM, DIM), DIM), {"linear": 2, "add": 1, "multiply": 0}),
    "gated mlp": (SwiGLU(), {"linear": 4, "multiply": 1, "act": 1}),
    "fused gate": (
        Gated(nn.Linear(DIM, 2 * DIM), spell=lambda gate, x: F.silu(gate[..., :DIM]) * gate[..., DIM:]),
        {"linear": 3, "multiply": 1, "act": 1},
    ),
}


@pytest.mark.parametrize("block", TOKEN_BLOCKS)
def test_block_of_a_transformer(block):
    module, counts = TOKEN_BLOCKS[block]
    graph = imported(Tokens(module))
    assert {kind: kinds(graph).count(kind) for kind in counts} == counts


def test_weights_that_are_not_numbers_are_named():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    module[0].weight.data[1] = float("nan")
    module[1].running_var[0] = float("inf")
    assert [str(finding) for finding in check(module, SAMPLE)] == [
        f"{name}: parameter: holds NaN or infinity; load the weights again"
        for name in ("0.weight", "1.running_var")
    ]


@pytest.mark.parametrize("batch", [1, 4])
def test_the_batch_of_the_sample_does_not_matter(batch):
    module = Tokens(Fused(SPLITS["timm"]))
    graph = import_module(module, torch.randn(batch, 3, 8, 8))
    assert graph.input_shape == (8, 8, 3) and graph.nodes[-1].shape == (TOKENS, DIM)


def test_a_module_for_one_image_only():
    imported_once = import_module(Body(lambda s, x: s.fc(x.reshape(1, 256)), fc=nn.Linear(256, 4)), SAMPLE)
    assert imported_once.nodes[-1].shape == (1, 4)


def test_the_module_is_left_as_it_is():
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).half().train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    import_module(module, SAMPLE)
    assert module.training and module[0].weight.dtype == torch.float16
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


# Refusals


class Hopeless(nn.Module):
    """Seven offenders between layers that are fine."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.LeakyReLU())
        self.larger = nn.ConvTranspose2d(8, 8, 3)
        self.up = nn.Upsample(scale_factor=2)
        self.body = nn.ModuleDict({"pool": nn.LPPool2d(2, 2), "act": nn.ReLU()})
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        x = self.up(self.larger(self.stem(x)))
        x = self.body["act"](x) / x.abs()
        x = torch.cat([x, torch.ones(x.shape)], dim=1)[:, :8]
        return self.head(x.mean((2, 3))).softmax(-1)


def test_every_offender_is_listed_with_path_reason_and_remedy():
    findings = check(Hopeless(), SAMPLE)
    listed = {(finding.path, finding.op) for finding in findings}
    assert {
        ("stem.1", "group_norm"),
        ("stem.2", "leaky_relu"),
        ("larger", "conv_transpose2d"),
        ("up", "upsample_nearest2d"),
        ("", "div"),
        ("", "abs"),
        ("", "cat"),
        ("", "softmax"),
    } == listed
    assert all(finding.reason and finding.remedy for finding in findings)
    with pytest.raises(UnsupportedModel) as caught:
        import_module(Hopeless(), SAMPLE)
    assert caught.value.findings == findings
    assert all(str(finding) in str(caught.value) for finding in findings)
    assert isinstance(caught.value, ValueError)


REFUSED = {
    "mask from the image": (
        Tokens(Separate(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, (q @ q.mT) * 0.1))),
        r"attn: scaled_dot_product_attention: attention takes no mask that depends on the image",
    ),
    "gate by scores": (
        Tokens(Separate(lambda q, k, v: (q @ k.mT + v @ v.mT).softmax(-1) @ v)),
        r"attn: add: attention takes no mask that depends on the image",
    ),
    "division": (
        Body(lambda s, x: s.layer(x) / x, layer=nn.Conv2d(16, 16, 1)),
        r"\(model\): div: division by an activation has no hardware",
    ),
    "mean of channels": (
        Body(lambda s, x: x.mean(1, keepdim=True) * 2),
        r"\(model\): mul: uses statistics of channels outside a LayerNorm",
    ),
    "deviation of channels": (
        Body(
            lambda s, x: s.layer(x) / torch.sqrt(x.var(1, keepdim=True, unbiased=False)),
            layer=nn.Conv2d(16, 16, 1),
        ),
        r"\(model\): div: uses statistics of channels outside a LayerNorm",
    ),
    "returned statistic": (Body(lambda s, x: x.mean(1)), r"mean: a statistic of channels is used outside"),
    "overlapping windows": (
        Body(lambda s, x: F.fold(F.unfold(x, 3, padding=1), 4, 3, padding=1)),
        r"\(model\): col2im: adds overlapping windows",
    ),
    "constant channels": (
        Body(lambda s, x: torch.cat([x, torch.ones(x.shape)], 1)),
        r"\(model\): cat: concatenates constants to something else than tokens",
    ),
    "unnormalized": (
        Tokens(Separate(lambda q, k, v: (q @ k.mT) @ v)),
        r"attn: matmul: a product of two activations is used outside softmax\(q\.k\)\.v",
    ),
    "random": (
        Body(lambda s, x: F.dropout(x, 0.5)),
        r"dropout: .*at random.*training",
    ),
    "noise": (
        Body(lambda s, x: x + torch.rand(4)),
        r"rand: is random at inference",
    ),
    "values": (
        Body(lambda s, x: x if x.sum() > 0 else -x),
        r"torch.export: .*forward\(x\) must run on the sample",
    ),
    "two outputs": (
        Body(lambda s, x: (x, F.relu(x))),
        r"output: returns 2 tensors; return one tensor",
    ),
    "softmax over queries": (
        Body(lambda s, x: F.softmax(x.flatten(2) @ x.flatten(2).mT, dim=1)),
        r"softmax: attention's softmax must run over keys, not axis 1",
    ),
    "limit by a tensor": (
        Body(lambda s, x: x.clamp(min=torch.zeros(16, 4, 4))),
        r"clamp: is used in a form that import does not know",
    ),
    "ceil": (nn.AvgPool2d(3, ceil_mode=True), r"avg_pool2d: pools windows that reach beyond the image"),
    "border": (
        nn.AvgPool2d(3, padding=1, count_include_pad=False),
        r"avg_pool2d: averages over fewer pixels at the border",
    ),
    "uneven": (nn.AdaptiveAvgPool2d(3), r"adaptive_avg_pool2d: pools \(8, 8\) to \(3, 3\)"),
    "lstm": (
        Body(lambda s, x: s.lstm(x.flatten(2).mT)[0], lstm=nn.LSTM(16, 8, batch_first=True)),
        r"lstm: .*lstm",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusal(case):
    module, message = REFUSED[case]
    with pytest.raises(UnsupportedModel, match=r"cannot be imported:\n") as caught:
        import_module(module, SAMPLE)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert len(caught.value.findings) == 1, str(caught.value)


@pytest.mark.parametrize("sample", [torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [1, 2]])
def test_unusable_sample(sample):
    with pytest.raises(
        ValueError, match=r"^Conv2d: the sample must be a float tensor \(N, C, H, W\), not .*"
    ):
        import_module(nn.Conv2d(3, 4, 1), sample)


def test_an_import_that_differs_from_the_module_is_refused(monkeypatch):
    monkeypatch.setattr("terrazzo.quant.floatgraph.ACTIVATIONS", {"gelu": F.relu})
    with pytest.raises(ValueError, match=r"the imported graph must equal the module within 0\.0001"):
        import_module(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU()), SAMPLE)
