"""Pi3 and Pi3X, with every kind of condition."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from adapters import Family
from lean3r.models.pi3 import Pi3, Pi3Config
from lean3r.models.pi3x import Pi3X, Pi3XConfig
from lean3r.types import Known, Views


def family(name: str) -> Family:
    return Family({"Pi3": build_pi3, "Pi3X": build_pi3x}[name], run, taps)


def build_pi3(arguments: Mapping[str, Any]) -> Pi3:
    return Pi3() if "Pi3" in arguments else Pi3(Pi3Config(**shared(arguments)))


def build_pi3x(arguments: Mapping[str, Any]) -> Pi3X:
    if "Pi3X" in arguments:
        return Pi3X()
    conv, metric = arguments["conv_head"], arguments["metric_decoder"]
    return Pi3X(
        Pi3XConfig(
            **shared(arguments),
            multimodal="ray_embed" in arguments,
            conv_widths=tuple(conv["dim_upsample"]),
            conv_last=conv["last_conv_channels"],
            metric_width=metric["dec_embed_dim"],
            metric_heads=metric["dec_num_heads"],
        )
    )


def shared(arguments: Mapping[str, Any]) -> dict[str, int]:
    vit, decoder = arguments["vit"], arguments["decoder"]
    return {
        "width": decoder["dim"],
        "heads": decoder["num_heads"],
        "depth": decoder["depth"],
        "encoder_depth": vit["depth"],
        "grid": vit["img_size"] // vit["patch_size"],
        "patch": vit["patch_size"],
        "registers": arguments["register_tokens"],
        "camera_width": arguments["camera_decoder"]["out_dim"],
    }


def run(model: Pi3, inputs: Mapping[str, Tensor], case: Mapping[str, Any]) -> dict[str, Tensor]:
    tokens = model.encode(Views(inputs["images"], known=known(inputs)))
    return {f"out.{name}": value for name, value in model.outputs(tokens).items()}


def known(inputs: Mapping[str, Tensor]) -> Known | None:
    parts = {"intrinsics": inputs.get("intrinsics"), "rays": inputs.get("rays"), "depth": inputs.get("depths")}
    if "poses" in inputs:
        parts["cam_from_world"] = torch.linalg.inv(inputs["poses"])
    for kind, field in (("depth", "has_depth"), ("ray", "has_intrinsics"), ("pose", "has_pose")):
        masks = [value for name, value in inputs.items() if "mask" in name and kind in name]
        parts[field] = masks[0].bool() if masks else None
    return None if all(part is None for part in parts.values()) else Known(**parts)


def taps(model: Pi3, case: Mapping[str, Any]) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {
        "tok.encoder_x_norm_patchtokens": model.encoder,
        "tok.point_decoder": model.point_decoder,
        "tok.conf_decoder": model.conf_decoder,
        "tok.camera_decoder": model.camera_decoder,
    }
    found |= {f"tok.decoder_{index:02d}": block for index, block in enumerate(model.trunk.blocks)}
    if isinstance(model, Pi3X):
        found["tok.metric_decoder"] = model.metric_decoder
        if model.sizes.multimodal:
            found |= {f"tok.pose_inject_{index}": block for index, block in enumerate(model.pose_inject_blk)}
    return found
