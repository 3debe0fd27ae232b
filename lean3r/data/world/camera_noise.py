"""Effects of a real camera (lens, exposure, white balance, noise, tone curve), and photographs as from a phone."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lean3r.data.world.draw import Draw


class Sensor(NamedTuple):
    """Per view [V, 1, 1]: target brightness, share of automatic exposure, vignetting, blur, noise (shot, read),
    contrast exponent; white balance [V, 3, 1, 1]."""

    brightness: Tensor
    automatic: Tensor
    vignette: Tensor
    blur: Tensor
    shot: Tensor
    read: Tensor
    exponent: Tensor
    white: Tensor


def sample_sensor(draw: Draw, views: int) -> Sensor:
    """Draw one camera per scene; exposure and white balance drift from view to view."""

    def drift(low: float, high: float, share: float) -> Tensor:
        value = draw.uniform(low, high, 1) + share * (high - low) * draw.uniform(-1, 1, views)
        return value.reshape(-1, 1, 1)

    white = (1 + 0.07 * draw.normal(1, 3) + 0.025 * draw.normal(views, 3)).clamp(0.75, 1.3)
    strength = draw.uniform(0, 1, 1) ** 3
    return Sensor(
        brightness=torch.exp(drift(-2.0, -1.05, 0.2)),
        automatic=drift(0.6, 1.0, 0.0),
        vignette=drift(0.0, 0.35, 0.0),
        blur=drift(-0.6, 0.9, 0.15).clamp(0, 1),
        shot=(0.03 * strength).expand(-1, views).reshape(-1, 1, 1),
        read=(0.002 + 0.018 * strength).expand(-1, views).reshape(-1, 1, 1),
        exponent=drift(0.40, 0.52, 0.05),
        white=white.reshape(-1, 3, 1, 1),
    )


def develop(linear: Tensor, noise: Tensor, sensor: Sensor) -> Tensor:
    """Pictures [V, 3, H, W] in 0..1, quantised to 8 bits, from linear light and standard normal noise of that shape."""
    h, w = linear.shape[-2:]
    device = linear.device
    rows = ((torch.arange(h, device=device) + 0.5) / h - 0.5)[:, None]
    columns = ((torch.arange(w, device=device) + 0.5) / w - 0.5)[None]
    falloff = 1 - sensor.vignette * (rows * rows + columns * columns) * 2
    mean = linear.mean((1, 2, 3), keepdim=True).clamp_min(1e-4)
    gain = sensor.brightness.unsqueeze(1) * (mean / 0.22) ** (1 - sensor.automatic.unsqueeze(1)) / mean
    light = linear * gain * sensor.white * falloff.unsqueeze(1)
    padded = F.pad(light, (1, 1, 1, 1), mode="replicate")
    across = 0.25 * (padded[..., :-2] + padded[..., 2:]) + 0.5 * padded[..., 1:-1]
    soft = 0.25 * (across[..., :-2, :] + across[..., 2:, :]) + 0.5 * across[..., 1:-1, :]
    light = light + sensor.blur.unsqueeze(1) * (soft - light)
    grain = sensor.read.unsqueeze(1) + sensor.shot.unsqueeze(1) * light.clamp_min(0).sqrt()
    light = (light + grain * noise).clamp_min(1e-6)
    # Extended Reinhard tone curve: white is at three times the middle of the range.
    light = light * (1 + light / 4.0) / (1 + light) * 1.6
    return ((light.clamp(0, 1) ** sensor.exponent.unsqueeze(1)) * 255).round() / 255


def write_photo(path: Path, image: Tensor, focal_35mm: int, number: int = 0) -> None:
    """Write a picture [3, H, W] in 0..1 as a phone's JPEG: EXIF with make, orientation, time and focal length."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "lean3r", "synthetic phone"
    exif[0x0112] = 1  # Orientation: upright
    details = exif.get_ifd(0x8769)
    details[0x9003] = f"2025:06:01 12:{number // 60 % 60:02d}:{number % 60:02d}"  # DateTimeOriginal
    details[0xA405] = focal_35mm  # FocalLengthIn35mmFilm
    pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path, quality=92, exif=exif)
