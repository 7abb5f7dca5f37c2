"""A small vision transformer and a small CNN for 8 x 8 grey images: plain torch, nothing of Terrazzo in them."""

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["MEAN", "RAW_MAX", "SCALE", "SHAPE", "STD", "DigitsCNN", "DigitsViT", "build"]

SHAPE = (8, 8, 1)
"""(H, W, C) of one image."""
RAW_MAX = 16.0
SCALE, MEAN, STD = 1 / 16, 0.3, 0.375
"""Preprocessing of raw values 0..RAW_MAX: (raw * SCALE - MEAN) / STD."""


class Attention(nn.Module):
    """Multi-head self-attention over (N, T, dim) with one fused projection, spelled as in timm."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(n, t, c))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dim: int, heads: int, mlp_ratio: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(dim, mlp_ratio * dim), nn.GELU(), nn.Linear(mlp_ratio * dim, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class DigitsViT(nn.Module):
    """(N, 1, 8, 8) to (N, 10) logits: 16 patches of 2 x 2 and a class token."""

    def __init__(self, dim: int = 96, depth: int = 4, heads: int = 3, mlp_ratio: int = 4):
        super().__init__()
        self.patch_embed = nn.Conv2d(1, dim, kernel_size=2, stride=2)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.pos_embed = nn.Parameter(torch.randn(1, 17, dim) * 0.5)
        self.blocks = nn.ModuleList(Block(dim, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class ConvNorm(nn.Sequential):
    """A bias-free convolution that keeps the image size at stride 1, batch normalization, and an activation."""

    def __init__(self, i: int, o: int, kernel: int, act: type[nn.Module], stride: int = 1, groups: int = 1):
        super().__init__(
            nn.Conv2d(i, o, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(o),
            act(),
        )


class Residual(nn.Module):
    """relu(x + f(x)) with two 3 x 3 convolutions."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3, nn.ReLU)
        self.conv2 = ConvNorm(channels, channels, 3, nn.Identity)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(x + self.conv2(self.conv1(x)))


class DigitsCNN(nn.Module):
    """(N, 1, 8, 8) to (N, 10) logits: plain, strided, residual, depthwise and pointwise convolutions, both poolings."""

    def __init__(self):
        super().__init__()
        self.stem = ConvNorm(1, 32, 3, nn.ReLU)
        self.down = ConvNorm(32, 64, 3, nn.ReLU6, stride=2)
        self.residual = Residual(64)
        self.depthwise = ConvNorm(64, 64, 3, nn.ReLU6, groups=64)
        self.pointwise = ConvNorm(64, 128, 1, nn.ReLU)
        self.max_pool = nn.MaxPool2d(2)
        self.average_pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.residual(self.down(self.stem(x)))
        x = self.max_pool(self.pointwise(self.depthwise(x)))
        return self.head(self.average_pool(x).flatten(1))


def build(name: str) -> nn.Module:
    """The untrained model called "vit" or "cnn"."""
    return {"vit": DigitsViT, "cnn": DigitsCNN}[name]()
