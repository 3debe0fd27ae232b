"""What can be chosen of a refinement, and what it is told of the cameras."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from lean3r.errors import UsageError
from lean3r.options import option

if TYPE_CHECKING:
    import numpy as np

    from lean3r.inputs.pictures import Pictures
    from lean3r.types import Lens, Reconstruction

Refine = Literal["auto", "on", "off"]
ShareLens = Literal["auto", "always", "never"]
LensName = Literal["auto", "simple-pinhole", "pinhole", "simple-radial", "radial", "opencv"]

SECONDS, SECONDS_A_VIEW = 60.0, 6.0  # of one processor: the limit where none is given
LEAST_SIDE = 64


@dataclass(frozen=True, kw_only=True)
class RefineOptions:
    """Whether and how to refine.

    `when` is on, off, or auto: the embedded model, on picture files. `seconds` bounds the time (None: 60 seconds of one
    processor and 6 more a view, so that the result does not depend on what else the machine does). `lens` is the
    camera model: "auto" is "simple-radial" (one focal length, one distortion). `share_lens`: "auto" gives one camera to
    pictures of one size and one EXIF focal length, "always" to pictures of one size, "never" to none. Features are
    found at a size of at most `side` pixels, at most `features` a picture.
    """

    when: Refine = option(
        "auto",
        "Make cameras exact by matches and bundle adjustment; auto: the embedded model, kept only where better.",
        name="refine",
    )
    seconds: float | None = option(
        None,
        "Refine for at most N seconds (by default 60 of one processor, and 6 more a picture).",
        "N",
        name="refine_seconds",
    )
    lens: LensName = option(
        "auto", "Refinement: the camera model; auto: one focal length and one distortion, or what --cameras says."
    )
    share_lens: ShareLens = option(
        "auto", "Refinement: one camera for pictures of one size; auto: also of one focal length in EXIF."
    )
    side: int = 1600
    features: int = 8192

    def __post_init__(self) -> None:
        for name, kind in (("refine", Refine), ("lens", LensName), ("share_lens", ShareLens)):
            value = self.when if name == "refine" else getattr(self, name)
            if value not in get_args(kind):
                raise UsageError(f"{name} is '{value}'; expected {', '.join(get_args(kind))}.")
        if self.seconds is not None and not self.seconds > 0:
            raise UsageError(f"refinement is given {self.seconds} seconds; expected more than 0, or --refine off.")
        if self.side < LEAST_SIDE or self.features < 1:
            raise UsageError(f"{self.features} features at {self.side} pixels; expected at least 1 at {LEAST_SIDE}.")

    @classmethod
    def of(cls, choice: Refine | RefineOptions) -> RefineOptions:
        """The options that "auto", "on" or "off" mean, or themselves."""
        return choice if isinstance(choice, RefineOptions) else cls(when=choice)

    def limit(self, views: int) -> float:
        """The limit for a number of views: seconds on the clock if stated, else of one processor."""
        return SECONDS + SECONDS_A_VIEW * views if self.seconds is None else self.seconds


@dataclass(frozen=True, kw_only=True)
class ScaleOptions:
    """What says how long a metre is: a known distance, or the places that GPS noted; at most one of them."""

    scale: str | None = option(
        None,
        "A known distance: two pictures and the metres between their cameras, as IMG_1.jpg,IMG_2.jpg=1.25.",
        "A,B=METRES",
    )
    gps: bool = option(False, "Metres and directions from the GPS in the pictures' EXIF: x east, y down, z north.")

    def __post_init__(self) -> None:
        if self.scale is not None:
            from lean3r.refine.scale import Distance

            Distance.parse(self.scale)
            if self.gps:
                raise UsageError("--scale and --gps both say what a metre is; choose one.")

    def check(self, pictures: Pictures) -> None:
        """InputError where the pictures lack what GPS needs: at once, not after the network."""
        from lean3r.refine.scale import read_places, require_places

        if self.gps:
            require_places(pictures.file_names, read_places(pictures, pictures.file_names))

    def apply(self, reconstruction: Reconstruction, pictures: Pictures) -> Reconstruction:
        """The scene in metres where that was asked for."""
        from lean3r.refine.scale import Distance, read_places, with_distance, with_places

        if self.scale is not None:
            return with_distance(reconstruction, Distance.parse(self.scale))
        if self.gps:
            return with_places(reconstruction, read_places(pictures, reconstruction.names))
        return reconstruction


@dataclass(frozen=True, eq=False)
class KnownCameras:
    """What is known of the S views beforehand, NaN or None where a view has none: intrinsics [S, 3, 3] in pixels of the
    original pictures, which are kept as they are; `lenses` [S], of which distortion is kept too (else it is estimated);
    cam_from_world [S, 4, 4], in whose world the result comes. `are_fixed` says whether these poses are held, or where
    the adjustment starts."""

    intrinsics: np.ndarray | None = None
    lenses: tuple[Lens | None, ...] = ()
    cam_from_world: np.ndarray | None = None
    are_fixed: bool = True

    def has_pose(self, views: int) -> np.ndarray:
        """Which of the views have known poses [S] bool."""
        import numpy as np

        poses = self.cam_from_world
        return np.zeros(views, bool) if poses is None else np.asarray(np.isfinite(poses).all((1, 2)))
