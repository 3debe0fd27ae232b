"""What can be chosen of a refinement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from lean3r.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from lean3r.masks import Masks

Refine = Literal["auto", "on", "off"]
ShareLens = Literal["auto", "always", "never"]
LensName = Literal["auto", "simple-pinhole", "pinhole", "simple-radial", "radial", "opencv"]

SECONDS, SECONDS_A_VIEW = 30.0, 3.0  # the time limit where none is given
LEAST_SIDE = 64


@dataclass(frozen=True, eq=False)
class RefineOptions:
    """How to refine.

    `seconds` bounds the time (None: 30 and 3 more a view). `lens` is the camera model: "auto" is "simple-radial"
    (one focal length, one distortion), and the pinhole itself where intrinsics are known. `share_lens`: "auto" gives
    one camera to pictures of one size and one EXIF focal length, "always" to pictures of one size, "never" to none.
    Features are found at a size of at most `side` pixels, at most `features` a picture, where `masks` are not black.
    What is known of the S views beforehand: intrinsics [S, 3, 3] in pixels of the original pictures, which are kept as
    they are, and cam_from_world [S, 4, 4], in whose world the result comes; rows of NaN where a view has none.
    """

    seconds: float | None = None
    lens: LensName = "auto"
    share_lens: ShareLens = "auto"
    side: int = 1600
    features: int = 8192
    intrinsics: np.ndarray | None = None
    cam_from_world: np.ndarray | None = None
    masks: Masks | None = None

    def __post_init__(self) -> None:
        if self.seconds is not None and not self.seconds > 0:
            raise UsageError(f"refinement is given {self.seconds} seconds; expected more than 0, or --refine off.")
        for name, kind in (("lens", LensName), ("share_lens", ShareLens)):
            if getattr(self, name) not in get_args(kind):
                raise UsageError(f"{name} is '{getattr(self, name)}'; expected {', '.join(get_args(kind))}.")
        if self.side < LEAST_SIDE or self.features < 1:
            raise UsageError(f"{self.features} features at {self.side} pixels; expected at least 1 at {LEAST_SIDE}.")

    def limit(self, views: int) -> float:
        """The time limit in seconds for a number of views."""
        return SECONDS + SECONDS_A_VIEW * views if self.seconds is None else self.seconds
