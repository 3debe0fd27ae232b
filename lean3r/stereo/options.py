"""Options of the stereo stage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lean3r.options import option

Dense = Literal["auto", "stereo", "network"]


@dataclass(frozen=True)
class StereoOptions:
    """Where depth comes from."""

    dense: Dense = option(
        "auto",
        "Depth from stereo between the pictures, or from the network alone; auto: stereo where cameras were refined or "
        "given.",
    )
