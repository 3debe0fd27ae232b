"""Table of the backbones, with a card for each, and of the students whose weights may ship with the package.

Nothing heavy is imported here: `lean3r models` reads this table.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lean3r.registry import Registry

EMBEDDED = Path(__file__).parents[1] / "weights"

APACHE = "Apache-2.0"
NON_COMMERCIAL = "CC-BY-NC-4.0"

_VGGT = "https://github.com/facebookresearch/vggt#updates"
_LINGBOT = "https://github.com/Robbyant/lingbot-map#-license"
_PI3 = "https://github.com/yyfz/Pi3#license"
_SPEED3R = "https://github.com/Visual-AI/speed3r#license"
_DA3 = "https://github.com/ByteDance-Seed/Depth-Anything-3#model-cards"


@dataclass(frozen=True)
class Card:
    """Facts about a model, available without importing it; tests compare them with the model itself.

    `where` is the class as "module:name", `about` says what it predicts. `parameters` counts the parameters of the
    dense model; `resolution` and `patch` are in pixels. `licence` is the licence of the weights (not of the code),
    `repository` the authors' repository on the Hugging Face Hub, `file` the weights in it
    if they have an unusual name, `stated` the page that states the licence.
    """

    where: str
    about: str
    parameters: int
    resolution: int
    patch: int
    licence: str = APACHE
    repository: str | None = None
    file: str | None = None
    stated: str | None = None


CARDS = {
    "nano": Card(
        "lean3r.models.nano:Nano",
        "Cameras, depth and confidence of any number of views, none of them the reference: the embedded model.",
        parameters=2_168_611,
        resolution=240,
        patch=16,
    ),
    "nano-looped": Card(
        "lean3r.models.nano_looped:NanoLooped",
        "nano whose (frame, global) blocks, camera, depth and feedback heads are one set, run `loops` times.",
        parameters=1_389_735,
        resolution=240,
        patch=16,
    ),
    "nano-stream": Card(
        "lean3r.models.nano_stream:NanoStream",
        "Cameras, depth and confidence of frames in order, the first one the origin: nano for streams.",
        parameters=2_175_651,
        resolution=240,
        patch=16,
    ),
    "vggt": Card(
        "lean3r.models.vggt:Vggt",
        "Cameras, depth, points and point tracks of any number of views, the first one the origin.",
        parameters=1_256_537_516,
        resolution=518,
        patch=14,
        licence=NON_COMMERCIAL,
        repository="facebook/VGGT-1B",
        stated=_VGGT,
    ),
    "lingbot-map": Card(
        "lean3r.models.lingbot:LingbotMap",
        "Cameras and depth of frames in order, the first one near the origin: the network for streams.",
        parameters=1_157_943_540,
        resolution=518,
        patch=14,
        repository="robbyant/lingbot-map",
        file="lingbot-map.pt",
        stated=_LINGBOT,
    ),
    "da3-small": Card(
        "lean3r.models.da3:Da3Small",
        "Cameras, depth and rays of any number of views; reads known cameras: the small size.",
        parameters=34_299_463,
        resolution=504,
        patch=14,
        repository="depth-anything/DA3-SMALL",
        stated=_DA3,
    ),
    "da3-base": Card(
        "lean3r.models.da3:Da3Base",
        "Cameras, depth and rays of any number of views; reads known cameras: the base size.",
        parameters=135_366_599,
        resolution=504,
        patch=14,
        repository="depth-anything/DA3-BASE",
        stated=_DA3,
    ),
    "da3-large": Card(
        "lean3r.models.da3:Da3",
        "Cameras, depth and rays of any number of views; reads known cameras: the large size.",
        parameters=410_941_767,
        resolution=504,
        patch=14,
        licence=NON_COMMERCIAL,
        repository="depth-anything/DA3-LARGE-1.1",
        stated=_DA3,
    ),
    "da3-giant": Card(
        "lean3r.models.da3:Da3Giant",
        "Cameras, depth, rays and Gaussians of any number of views; reads known cameras: the giant size.",
        parameters=1_355_674_125,
        resolution=504,
        patch=14,
        licence=NON_COMMERCIAL,
        repository="depth-anything/DA3-GIANT-1.1",
        stated=_DA3,
    ),
    "da3mono-large": Card(
        "lean3r.models.da3_mono:Da3Mono",
        "Depth and sky of each view by itself, no poses.",
        parameters=334_171_394,
        resolution=504,
        patch=14,
        repository="depth-anything/DA3MONO-LARGE",
        stated=_DA3,
    ),
    "da3metric-large": Card(
        "lean3r.models.da3_mono:Da3Metric",
        "Depth in metres and sky of each view by itself, given the focal length; no poses.",
        parameters=334_171_394,
        resolution=504,
        patch=14,
        repository="depth-anything/DA3METRIC-LARGE",
        stated=_DA3,
    ),
    "da3nested-giant-large": Card(
        "lean3r.models.da3_nested:Da3Nested",
        "Cameras, depth and Gaussians of any number of views, in metres: da3-giant with the metric model.",
        parameters=1_689_845_519,
        resolution=504,
        patch=14,
        licence=NON_COMMERCIAL,
        repository="depth-anything/DA3NESTED-GIANT-LARGE-1.1",
        stated=_DA3,
    ),
    "pi3": Card(
        "lean3r.models.pi3:Pi3",
        "Cameras, points as depth, and confidence of any number of views, none of them the reference.",
        parameters=958_696_732,
        resolution=504,
        patch=14,
        licence=NON_COMMERCIAL,
        repository="yyfz233/Pi3",
        stated=_PI3,
    ),
    "pi3x": Card(
        "lean3r.models.pi3x:Pi3X",
        "Pi3 in metres, which also reads known depth, intrinsics and poses.",
        parameters=1_360_032_433,
        resolution=504,
        patch=14,
        licence=NON_COMMERCIAL,
        repository="yyfz233/Pi3X",
        stated=_PI3,
    ),
    "speed3r-pi3": Card(
        "lean3r.models.speed3r:Speed3rPi3",
        "Pi3 for many views: any aspect ratio, sides multiples of 14. Scale is unknown; known cameras are not read.",
        parameters=959_282_012,
        resolution=504,
        patch=14,
        licence=NON_COMMERCIAL,
        repository="weining17/Speed3R_Pi3",
        stated=_SPEED3R,
    ),
}


class Student(NamedTuple):
    """Weights with their own plan: the name in MODELS that they belong to, and what they are good for."""

    model: str
    about: str


STUDENTS = {
    "nano-gsa-fp8": Student("nano", "nano with coarse-to-fine sparse attention and FP8 weights: for many views."),
    "nano-sla-fp8": Student("nano", "nano with sparse-linear attention and FP8 weights: for many views."),
}
"""Names that `load` takes if lean3r/weights has NAME.safetensors, or if weights are given."""

SHIPPED = tuple(name for name in STUDENTS if (EMBEDDED / f"{name}.safetensors").is_file())

MODELS = Registry("model", {name: card.where for name, card in CARDS.items()}, also=SHIPPED)

NO_NETWORK = "none"  # the name that `load` takes for known cameras without a network

MANY = 50  # views


def usual_model(views: int, on_cpu: bool) -> tuple[str, str]:
    """The model of a run that names none, and why: on a CPU, the student from MANY views on (docs/nano.md)."""
    if on_cpu and views >= MANY:
        return "nano-gsa-fp8", f"chosen for {views:,} pictures on a CPU"
    return "nano", f"chosen for {views:,} pictures" if on_cpu else "chosen for a GPU"


def list_models() -> tuple[str, ...]:
    """Names that `load` takes: models, and students whose weights come with the package."""
    return (*MODELS, *SHIPPED)


def model_of(name: str) -> str:
    """The name in MODELS that a name stands for: a student's model, or the name itself."""
    return STUDENTS[name].model if name in STUDENTS else name


def is_non_commercial(licence: str) -> bool:
    """Whether a licence, by its SPDX name, forbids commercial use."""
    return "NC" in licence.split("-")
