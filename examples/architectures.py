"""Vision models of Hugging Face `transformers` as they are, small and with random weights."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

__all__ = ["ARCHITECTURES", "Architecture"]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A model class of `transformers` and a small configuration of it."""

    model: str
    """Class of the model; its configuration class is the model's own."""
    size: int
    """Height and width of an image in pixels."""
    config: dict[str, object]

    def build(self, seed: int = 0) -> nn.Module:
        """The model in eval mode with seeded random weights, as large as those of trained models.

        The library's own initial weights leave most residual branches near zero, where any import would pass.
        Raises ModuleNotFoundError without `transformers`.
        """
        import transformers

        kind = getattr(transformers, self.model)
        torch.manual_seed(seed)
        model = kind(kind.config_class(**self.config)).eval()
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            _randomize(name.rpartition(".")[2], value.data)
        _measure(model, self.size)
        return model


@torch.no_grad()
def _measure(model: nn.Module, size: int) -> None:
    """Set the statistics of BatchNorm layers to those of random images, so that activations stay in range."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    if norms:
        model(torch.randn(16, 3, size // 4, size // 4).repeat_interleave(4, 2).repeat_interleave(4, 3))
    model.eval()


def _randomize(name: str, value: torch.Tensor) -> None:
    if not value.is_floating_point() or name in ("logit_scale", "relative_coords_table"):
        return
    if value.dim() < 2 and "bias" not in name:
        value.uniform_(0.5, 1.5)
    elif value.dim() < 2:
        value.normal_(0, 0.1)
    elif "embed" in name or "token" in name or name == "relative_position_bias_table":
        value.normal_(0, 0.5)
    else:
        value.normal_(0, value[0].numel() ** -0.5)


_VIT = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "image_size": 32,
    "patch_size": 8,
    "num_labels": 10,
}
_STAGES = {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 1, 1], "num_labels": 10}
_SWIN = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 16,
    "depths": [2, 2],
    "num_heads": [2, 4],
    "window_size": 4,
    "num_labels": 10,
}
_PYRAMID = {"num_attention_heads": [1, 2, 3, 4]} | _STAGES

ARCHITECTURES = {
    "vit": Architecture("ViTForImageClassification", 32, _VIT),
    "deit": Architecture("DeiTForImageClassification", 32, _VIT),
    "deit-distilled": Architecture("DeiTForImageClassificationWithTeacher", 32, _VIT),
    "vit-msn": Architecture("ViTMSNForImageClassification", 32, _VIT),
    "dinov2": Architecture("Dinov2ForImageClassification", 32, _VIT | {"mlp_ratio": 2}),
    "dinov2-swiglu": Architecture("Dinov2ForImageClassification", 32, _VIT | {"use_swiglu_ffn": True}),
    "dinov2-registers": Architecture(
        "Dinov2WithRegistersForImageClassification", 32, _VIT | {"mlp_ratio": 2, "num_register_tokens": 2}
    ),
    "dinov3": Architecture("DINOv3ViTModel", 32, _VIT | {"num_register_tokens": 2}),
    "ijepa": Architecture("IJepaForImageClassification", 32, _VIT),
    "beit": Architecture("BeitForImageClassification", 32, _VIT | {"use_relative_position_bias": True}),
    "data2vec": Architecture(
        "Data2VecVisionForImageClassification", 32, _VIT | {"use_shared_relative_position_bias": True}
    ),
    "clip": Architecture("CLIPVisionModelWithProjection", 32, _VIT | {"projection_dim": 24}),
    "siglip": Architecture("SiglipForImageClassification", 32, {"vision_config": _VIT, "num_labels": 10}),
    "swin": Architecture("SwinForImageClassification", 32, _SWIN),
    "swinv2": Architecture("Swinv2ForImageClassification", 32, _SWIN),
    "resnet": Architecture("ResNetForImageClassification", 32, _STAGES | {"embedding_size": 16}),
    "regnet": Architecture(
        "RegNetForImageClassification", 32, _STAGES | {"embedding_size": 16, "groups_width": 8}
    ),
    "mobilenet-v1": Architecture(
        "MobileNetV1ForImageClassification", 64, {"depth_multiplier": 0.25, "num_labels": 10}
    ),
    "mobilenet-v2": Architecture(
        "MobileNetV2ForImageClassification", 64, {"depth_multiplier": 0.35, "num_labels": 10}
    ),
    "convnext": Architecture("ConvNextForImageClassification", 64, _STAGES),
    "convnext-v2": Architecture("ConvNextV2ForImageClassification", 64, _STAGES),
    "efficientnet": Architecture(
        "EfficientNetForImageClassification",
        64,
        {"width_coefficient": 0.25, "depth_coefficient": 0.3, "hidden_dim": 320, "num_labels": 10},
    ),
    "mobilevit": Architecture(
        "MobileViTForImageClassification",
        64,
        {
            "image_size": 64,
            "hidden_sizes": [24, 32, 40],
            "neck_hidden_sizes": [8, 8, 16, 24, 24, 32, 48],
            "num_labels": 10,
        },
    ),
    "mobilevit-v2": Architecture(
        "MobileViTV2ForImageClassification",
        64,
        {
            "image_size": 64,
            "width_multiplier": 0.25,
            "base_attn_unit_dims": [32, 64, 64],
            "n_attn_blocks": [1, 1, 1],
            "num_labels": 10,
        },
    ),
    "pvt": Architecture("PvtForImageClassification", 64, _PYRAMID | {"image_size": 64}),
    "pvt-v2": Architecture("PvtV2ForImageClassification", 64, _PYRAMID | {"image_size": 64}),
    "segformer": Architecture("SegformerForImageClassification", 64, _PYRAMID),
    "poolformer": Architecture("PoolFormerForImageClassification", 64, _STAGES),
    "cvt": Architecture(
        "CvtForImageClassification",
        32,
        {"embed_dim": [16, 32, 48], "num_heads": [1, 2, 3], "depth": [1, 2, 3], "num_labels": 10},
    ),
    "levit": Architecture(
        "LevitForImageClassification",
        64,
        {
            "image_size": 64,
            "hidden_sizes": [32, 48, 64],
            "num_attention_heads": [2, 3, 4],
            "depths": [1, 1, 1],
            "key_dim": [8, 8, 8],
            "num_labels": 10,
        },
    ),
    "focalnet": Architecture(
        "FocalNetForImageClassification",
        32,
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 16,
            "hidden_sizes": [32, 64],
            "depths": [1, 1],
            "focal_levels": [2, 2],
            "focal_windows": [3, 3],
            "num_labels": 10,
        },
    ),
    "bit": Architecture("BitForImageClassification", 32, _STAGES | {"embedding_size": 16, "num_groups": 4}),
    "hiera": Architecture(
        "HieraForImageClassification",
        64,
        {
            "image_size": [64, 64],
            "embed_dim": 16,
            "depths": [1, 1, 1],
            "num_heads": [1, 2, 4],
            "num_query_pool": 2,
            "masked_unit_size": [4, 4],
            "masked_unit_attention": [True, True, False],
            "num_labels": 10,
        },
    ),
    "swiftformer": Architecture(
        "SwiftFormerForImageClassification",
        64,
        {"embed_dims": [16, 24, 32, 48], "depths": [1, 1, 1, 1], "num_labels": 10},
    ),
    "hgnet-v2": Architecture(
        "HGNetV2ForImageClassification",
        64,
        {
            "embedding_size": 8,
            "stem_channels": [3, 8, 16],
            "stage_in_channels": [16, 24, 32, 48],
            "stage_mid_channels": [8, 8, 16, 16],
            "stage_out_channels": [24, 32, 48, 64],
            "stage_num_blocks": [1, 1, 1, 1],
            "stage_numb_of_layers": [2, 2, 2, 2],
            "hidden_sizes": [24, 32, 48, 64],
            "depths": [1, 1, 1, 1],
            "num_labels": 10,
        },
    ),
    "textnet": Architecture(
        "TextNetForImageClassification",
        64,
        {
            "stem_out_channels": 16,
            "hidden_sizes": [16, 16, 24, 32, 48],
            "conv_layer_kernel_sizes": [[[3, 3]], [[3, 1]], [[1, 3]], [[3, 3]]],
            "conv_layer_strides": [[2], [2], [2], [2]],
            "num_labels": 10,
        },
    ),
}
"""By the name in the table of results."""
