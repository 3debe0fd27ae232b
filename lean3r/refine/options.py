"""What can be chosen of a refinement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from lean3r.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from lean3r.inputs.masks import Masks
    from lean3r.types import Lens

Refine = Literal["auto", "on", "off"]
ShareLens = Literal["auto", "always", "never"]
KnownPoses = Literal["fixed", "start"]
LensName = Literal["auto", "simple-pinhole", "pinhole", "simple-radial", "radial", "opencv"]

SECONDS, SECONDS_A_VIEW = 60.0, 6.0  # of one processor: the limit where none is given
LEAST_SIDE = 64


@dataclass(frozen=True, eq=False)
class RefineOptions:
    """How to refine.

    `seconds` bounds the time (None: 60 seconds of one processor and 6 more a view, so that the result does not depend
    on what else the machine does). `lens` is the camera model: "auto" is "simple-radial" (one focal length, one
    distortion). `share_lens`: "auto" gives one camera to pictures of one size and one EXIF focal length, "always" to
    pictures of one size, "never" to none. Features are found at a size of at most `side` pixels, at most `features` a
    picture, where `masks` are not black.

    What is known of the S views beforehand, NaN or None where a view has none: intrinsics [S, 3, 3] in pixels of the
    original pictures, which are kept as they are; `lenses` [S], of which distortion is kept too (else it is estimated);
    cam_from_world [S, 4, 4], in whose world the result comes. `known_poses` says whether these are held ("fixed") or
    where the adjustment starts ("start").
    """

    seconds: float | None = None
    lens: LensName = "auto"
    share_lens: ShareLens = "auto"
    side: int = 1600
    features: int = 8192
    intrinsics: np.ndarray | None = None
    lenses: tuple[Lens | None, ...] = ()
    cam_from_world: np.ndarray | None = None
    masks: Masks | None = None
    known_poses: KnownPoses = "fixed"

    def __post_init__(self) -> None:
        if self.seconds is not None and not self.seconds > 0:
            raise UsageError(f"refinement is given {self.seconds} seconds; expected more than 0, or --refine off.")
        for name, kind in (("lens", LensName), ("share_lens", ShareLens), ("known_poses", KnownPoses)):
            if getattr(self, name) not in get_args(kind):
                raise UsageError(f"{name} is '{getattr(self, name)}'; expected {', '.join(get_args(kind))}.")
        if self.side < LEAST_SIDE or self.features < 1:
            raise UsageError(f"{self.features} features at {self.side} pixels; expected at least 1 at {LEAST_SIDE}.")

    def posed(self, views: int) -> np.ndarray:
        """Which of the views have known poses [S] bool."""
        import numpy as np

        poses = self.cam_from_world
        return np.zeros(views, bool) if poses is None else np.asarray(np.isfinite(poses).all((1, 2)))

    def limit(self, views: int) -> float:
        """The limit for a number of views: seconds on the clock if stated, else of one processor."""
        return SECONDS + SECONDS_A_VIEW * views if self.seconds is None else self.seconds
