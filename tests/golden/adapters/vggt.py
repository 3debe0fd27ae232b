"""VGGT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from adapters import Family, log_less_one, signed_log
from lean3r.models.vggt import Vggt, VggtConfig
from lean3r.types import Views


def family(name: str) -> Family:
    return Family(
        build,
        run,
        taps,
        compare={
            "out.depth": torch.log,
            "out.depth_conf": log_less_one,
            "out.world_points": signed_log,
            "out.world_points_conf": log_less_one,
        },
        # Sines of large angles make the tracker's later iterations chaotic under synthetic weights.
        limits={
            "out.track_iter1": 1e-3,
            "out.track_iter2": 0.1,
            "out.track_iter3": 0.3,
            "out.vis": 0.1,
            "out.conf": 0.1,
        },
    )


def build(arguments: Mapping[str, Any]) -> Vggt:
    if "VGGT" in arguments:
        return Vggt()
    return Vggt(config(arguments))


def config(arguments: Mapping[str, Any]) -> VggtConfig:
    vit, head, track = arguments["vit"], arguments["depth_head"], arguments.get("track_head")
    sizes = VggtConfig(
        width=vit["embed_dim"],
        heads=vit["num_heads"],
        encoder_depth=vit["depth"],
        grid=vit["img_size"] // vit["patch_size"],
        pairs=arguments["aggregator"]["depth"],
        keep=tuple(head["intermediate_layer_idx"]),
        features=head["features"],
        channels=tuple(head["out_channels"]),
        point_head="point_head" in arguments,
        track_head=track is not None,
    )
    if track is None:
        return sizes
    return replace(
        sizes,
        track_features=track["features"],
        track_levels=track["corr_levels"],
        track_radius=track["corr_radius"],
        track_hidden=track["hidden_size"],
    )


def run(model: Vggt, inputs: Mapping[str, Tensor], case: Mapping[str, Any]) -> dict[str, Tensor]:
    images = inputs["images"]
    tokens = model.encode(Views(images if images.dim() == 5 else images[None]))
    queries = inputs.get("query_points")
    found = model.outputs(tokens, None if queries is None else queries.reshape(-1, *queries.shape[-2:]))
    prediction = model.decode(tokens, dense=False)
    found |= {"extrinsics": prediction.cam_from_world[..., :3, :], "intrinsics": prediction.intrinsics}
    return {f"out.{name}": value for name, value in found.items()}


def taps(model: Vggt, case: Mapping[str, Any]) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {"tok.patch_embed_x_norm_patchtokens": model.encoder}
    for index, block in enumerate(model.trunk.blocks):
        found[f"tok.{('frame', 'global')[index % 2]}_block_{index // 2:02d}"] = block
    return found
