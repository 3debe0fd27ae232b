"""A stream from its source to its estimates, and to its store if there is one."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lean3r.errors import LeanError, UsageError
from lean3r.inputs.arrays import pixels_of
from lean3r.models.base import Backbone
from lean3r.options import PointOptions, as_record
from lean3r.pipeline.memory import in_units
from lean3r.pipeline.observer import Observer
from lean3r.pipeline.options import Intrinsics, RunOptions
from lean3r.pipeline.predict import where
from lean3r.processes import meanwhile, peak_memory_mb
from lean3r.refine.options import Refine, RefineOptions
from lean3r.stereo.options import Dense, StereoOptions
from lean3r.stream import ENGINES
from lean3r.stream.budget import OVERLAP, USUAL
from lean3r.stream.cloud import Cloud
from lean3r.stream.engine import Engine, Estimate, Frame, LooksAhead, Settings, revised
from lean3r.stream.frames import Mark, Source, paths_of
from lean3r.stream.latency import Times
from lean3r.stream.options import StreamOptions, check_engine, check_state, known_camera, made_by
from lean3r.stream.pace import Early, Live
from lean3r.stream.store import Store, room

if TYPE_CHECKING:
    from lean3r.stream.publish import Publisher

FITTED = ("window", "overlap", "resolution", "pages")  # settings that are fitted into the memory
CHECKPOINT_FRAMES = 16  # at least between two checkpoints
SAVING, PUBLISHING = 0.1, 0.1  # of the time at most goes into checkpoints, and into writing the result anew


def stream(
    model: Backbone,
    source: Any,
    out: str | Path | None = None,
    *,
    options: StreamOptions | None = None,
    resolution: int | None = None,
    intrinsics: Intrinsics | None = None,
    memory: str | int | None = None,
    refine: Refine | RefineOptions = "auto",
    dense: Dense | StereoOptions = "network",
    points: PointOptions | None = None,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    state: Mapping[str, Any] | None = None,
    observer: Observer | None = None,
) -> Stream:
    """Reconstruct a stream in bounded memory: iterate over the result for an `Estimate` of every frame, in order.

    `source` is a video, a folder, a camera (`camera:0`), or any iterator of pictures (stream/frames.py). Results go to
    the append-only folder `out`, or nowhere. With `resume`, a stream that was stopped there at any moment goes on, with
    the same result. `memory` ("8GB") sets the number of keyframes that are reconstructed at once, and the size of their
    pictures; `observer.fitted` receives the sum. `intrinsics` are those of all frames; `resolution`, `refine`,
    `dense`, `points` and `seed` are those of `lean3r.reconstruct`, for every window of keyframes. `state` is that of
    another stream, which goes on here with a source of its own: its frames are in the same world once they show a
    place again.

    UsageError for invalid options, a folder that cannot be used, or a full disk; InputError if the source cannot be
    read; OutOfMemoryError if `memory` is too small.
    """
    if not isinstance(model, Backbone):
        raise UsageError(f"the model is a {type(model).__name__}; expected a loaded model: lean3r.load('nano').")
    options, points = options or StreamOptions(), points or PointOptions()
    for given, kind in ((options, StreamOptions), (points, PointOptions)):
        if not isinstance(given, kind):
            raise UsageError(f"got {given!r} where {kind.__name__} are expected, such as {kind()!r}.")
    run = RunOptions(resolution=resolution, seed=seed)
    refine = RefineOptions.of(refine)
    run.check(model)
    check_engine(model, options, intrinsics, refine, StereoOptions.of(dense))
    window = options.window or USUAL
    settings = Settings(
        window=window,
        overlap=options.overlap or max(1, round(window * OVERLAP / USUAL)),
        step=options.keyframe_step,
        resolution=resolution,
        seed=seed,
        **known_camera(intrinsics),
        refine=refine,
        landmarks=Settings.landmarks if options.loops == "on" else 0,
        dense=StereoOptions.of(dense),
        points=points,
    )
    return Stream(
        model, source, settings, options, out, memory, observer, resume=resume, overwrite=overwrite, state=state
    )


class Stream:
    """Estimates of a stream; made by `lean3r.stream`, and iterated over once.

    `reports` holds the last windows of the `report_count` that there were. `figures` says how fast it was, `warnings`
    what the manifest in the output folder warns of, each with a `code`, a `text` and `views`.
    """

    def __init__(
        self,
        model: Backbone,
        source: Any,
        settings: Settings,
        options: StreamOptions,
        out: str | Path | None,
        memory: str | int | None,
        observer: Observer | None,
        *,
        resume: bool,
        overwrite: bool,
        state: Mapping[str, Any] | None,
    ) -> None:
        self.model, self.memory, self._observer = model, memory, observer or Observer()
        self._raw, self._options = source, options
        self._settings = settings
        self._out = None if out is None else Path(out)
        self._resume, self._overwrite, self._begin_with = resume, overwrite, state
        self._mark = Mark()  # behind the last frame that arrived
        self.reports: deque[dict[str, Any]] = deque(maxlen=64)
        self.report_count = 0
        self.delays, self.works = Times(), Times()
        self.frames = self.keyframes = self.dropped = self.uncertain = 0
        self.seconds, self.notes = 0.0, {}
        self.warnings: list[dict[str, Any]] = []
        self.engine: Engine | None = None
        self.cloud: Cloud | None = None
        self._placements = np.zeros((0, 4, 4))  # by which the cloud is placed
        self._version = 0
        self._publishing_s = self._saving_s = 0.0
        self._published_at = self._saved_at = time.perf_counter()
        self._since = 0
        if resume and out is None:
            raise UsageError("a stream without a folder cannot be resumed; name it.")
        if state is not None:
            check_state(state, model, options, memory)
        if resume and Source.is_once(source):
            raise UsageError("a camera cannot be resumed: its frames are gone. Start a new folder.")

    @property
    def settings(self) -> Settings:
        """As chosen, and from the first frame on as fitted into the memory."""
        return self._settings

    def __iter__(self) -> Iterator[Estimate]:
        if self.engine is not None:
            raise UsageError("a stream is iterated over once: go on with the iterator that it gave, or make another.")
        store = self._open()
        start = time.perf_counter()
        checkpoint = None if store is None else store.checkpoint
        try:
            source = self._source = Source(self._raw, None if checkpoint is None else mark_of(checkpoint))
            if checkpoint is None and self._begin_with is not None:
                source.follow(self._begin_with["next"], self._begin_with["last_s"])
            is_dropping = source.is_live if self._options.drop == "auto" else self._options.drop == "on"
            self._settings = replace(self._settings, waits=not is_dropping)
            self._restore(checkpoint or self._begin_with)
            if checkpoint is None:
                self.frames = self.keyframes = self.uncertain = 0  # those of another stream do not count
            live = Live(source) if is_dropping else None
            try:
                yield from self._run(source, live, store, start)
            finally:
                if live is not None:
                    live.close()
                self.notes, self.seconds = dict(source.counts), time.perf_counter() - start
        finally:
            if store is not None:
                store.close()

    def _run(self, source: Source, live: Live | None, store: Store | None, start: float) -> Iterator[Estimate]:
        arrived: deque[tuple[int, float]] = deque()
        early = Early(source) if live is None and source.is_file else None

        def look_ahead() -> bool:
            engine = self.engine
            if early is None or not isinstance(engine, LooksAhead):
                return False
            if engine.has_room and early.give(look):
                return True
            engine.prepare()
            return False

        def look(frame: Frame) -> None:
            assert isinstance(self.engine, LooksAhead)
            arrive(frame, time.perf_counter())
            self.engine.look(frame)

        def arrive(frame: Frame, moment: float) -> None:
            arrived.append((frame.index, moment))
            self._mark = source.behind(frame.index)

        try:
            try:
                for moment, frame in live or ((time.perf_counter(), frame) for frame in early or source):
                    self.engine = self.engine or self._begin(frame, 0 if live is None else live.most)
                    arrive(frame, moment)
                    begun = time.perf_counter()
                    with meanwhile(look_ahead):
                        estimates = self.engine.push(frame)
                    self.works.add(time.perf_counter() - begun)
                    self.dropped = 0 if live is None else live.dropped
                    self._take(estimates, arrived, store, start)
                    self._since += 1
                    if store is not None and estimates and self._is_due():
                        self._save(store)
                    yield from estimates
            except KeyboardInterrupt:
                if live is None:
                    raise
                live.close()  # the usual way to end a camera's stream
            if self.engine is None:
                return  # there was no frame
            # One window after the other: the next one may move what is known by then, and the cloud with it.
            while isinstance(self.engine, LooksAhead) and (estimates := self.engine.go_on()):
                self._take(estimates, arrived, store, start)
                yield from estimates
            estimates = self.engine.finish()
            self._take(estimates, arrived, store, start)
            yield from estimates
        except LeanError:
            raise  # such as a full disk
        except BaseException:  # also of the source; or the one who iterates takes no more
            # At the end of the interpreter, nothing can be imported any more.
            if store is not None and store.has_frames and not sys.is_finalizing():
                self._publish(store, is_final=False)  # the stream may go on later
            raise
        if store is not None:
            store.open()  # though no frame was added since the checkpoint
            if store.has_frames:
                self._publish(store, is_final=True)

    def _open(self) -> Store | None:
        if self._out is None:
            return None
        more: dict[str, Any] = {"resume": self._resume, "overwrite": self._overwrite}
        return Store(self._out, self._identity(), inputs=paths_of(self._raw), **more)

    def _identity(self) -> dict[str, Any]:
        """What a stream must share with one that it resumes."""
        settings, apart = self._settings, {"refine", "dense", "points", "waits", "pages"}
        return {
            **made_by(self.model),
            "source": Source.describe(self._raw)[0],
            "memory": None if self.memory is None else str(self.memory),
            "settings": {
                **{name: value for name, value in asdict(settings).items() if name not in apart},
                "resolution": settings.resolution or self.model.resolution,
                **as_record(settings.refine, settings.dense, settings.points),
            },
        }

    def _restore(self, checkpoint: Mapping[str, Any] | None) -> None:
        points = self._settings.points
        self.cloud = Cloud(points.max_points, points.conf_percentile)
        if checkpoint is None:
            return
        self._settings = replace(self._settings, **checkpoint["fitted"])
        self.engine = self._make()
        self.engine.restore(checkpoint["engine"])
        self._placements, self._version = self.engine.placements, self.engine.version
        self.cloud.restore(checkpoint["cloud"])
        self.frames, self.keyframes, self.uncertain = checkpoint["counts"]
        self._mark = mark_of(checkpoint)

    def _make(self) -> Engine:
        return ENGINES.get(self.model.STREAMS)(self.model, self._settings)

    def _begin(self, frame: Frame, queue: int) -> Engine:
        """The engine of a stream that is fitted into the memory, by its first frame; `queue` more may wait."""
        from lean3r.stream.solver import check_camera

        check_camera(self.model, self._settings, frame)
        if self.memory is not None:
            engine, shape = ENGINES.get(self.model.STREAMS), frame.image.shape
            terms = self.model, self._settings, self._options, shape, self.memory, queue
            self._settings, text = engine.fit(*terms)
            self._observer.fitted(text)
        self._settings = replace(self._settings, resolution=self._settings.resolution or self.model.resolution)
        return self._make()

    def _take(
        self, estimates: list[Estimate], arrived: deque[tuple[int, float]], store: Store | None, start: float
    ) -> None:
        assert self.engine is not None and self.cloud is not None
        now = time.perf_counter()
        self.seconds = now - start
        for each in estimates:
            while arrived and arrived[0][0] <= each.index:
                self.delays.add(now - arrived.popleft()[1])
        placements = self.engine.placements
        if self.engine.version != self._version:
            self.cloud.move(self._placements, placements, self.engine.bends)
        self._placements, self._version = placements, self.engine.version
        self.cloud.add(estimates)
        self.frames += len(estimates)
        self.keyframes += sum("keyframe" in each.flags for each in estimates)
        self.uncertain += sum(bool(each.flags & {"uncertain", "lost"}) for each in estimates)
        reports = self.engine.take_reports()
        self.reports.extend(reports)
        self.report_count += len(reports)
        if store is not None and (estimates or reports):
            store.append(estimates, reports)

    def _is_due(self) -> bool:
        """Whether it is time for a checkpoint; that of a large cache takes a while."""
        waited = time.perf_counter() - self._saved_at
        return self._since >= CHECKPOINT_FRAMES and waited > self._saving_s / SAVING

    def state(self) -> dict[str, Any]:
        """Everything that this stream knows, between two frames: nested dictionaries of arrays and plain values, with
        which any number of other streams can begin. UsageError before the first frame."""
        if self.engine is None:
            raise UsageError("the stream has no state before its first frame; take a frame first.")
        return deepcopy(self._state())

    def _state(self) -> dict[str, Any]:
        assert self.engine is not None and self.cloud is not None
        return {
            **self._mark._asdict(),
            "made_by": made_by(self.model),
            "fitted": {name: getattr(self._settings, name) for name in FITTED},
            "engine": self.engine.state(),
            "cloud": self.cloud.state(),
            "counts": [self.frames, self.keyframes, self.uncertain],
        }

    def locate(self, image: Any) -> Estimate | None:
        """Where a picture (PIL image, array, tensor) was taken, if the stream remembers the place; else None.

        The picture is not stored, and the stream goes on as if nothing had been asked.
        """
        pixels = pixels_of(image, "the picture")
        return None if self.engine is None else self.engine.locate(Frame(*self._mark[:2], pixels))

    def _save(self, store: Store) -> None:
        begun = time.perf_counter()
        store.save(self._state())
        self._since, self._saved_at = 0, time.perf_counter()
        self._saving_s = self._saved_at - begun
        if self._saved_at - self._published_at > self._publishing_s / PUBLISHING:
            self._publish(store, is_final=False)

    def _publish(self, store: Store, *, is_final: bool) -> None:
        assert self.engine is not None and self.cloud is not None
        begun = time.perf_counter()
        with room(store.folder):
            publisher = self._publisher(store)
            self.uncertain, self.warnings = publisher.publish(self.engine, self.cloud, self.figures, is_final=is_final)
        self._published_at = time.perf_counter()
        self._publishing_s = self._published_at - begun

    def _publisher(self, store: Store) -> Publisher:
        from lean3r.stream.publish import Publisher

        origin, plan = self.model.origin, self.model.plan
        info = {
            "model": self.model.name,
            "licence": self.model.licence,
            "weights": origin.weights,
            "weights_hash": origin.hash,
            "plan": None if plan is None else plan.as_dict(),
            "device": where(self.model),
            "skipped": [{"name": name, "reason": reason} for name, reason in self._source.skipped],
        }
        settings = self._settings
        config = {
            "model": self.model.name,
            "source": Source.describe(self._raw)[0],
            "window": settings.window,
            "overlap": settings.overlap,
            "keyframe_step": settings.step,
            "resolution": settings.resolution,
            **({"pages": settings.pages} if settings.pages != "auto" else {}),
            "seed": settings.seed,
            "intrinsics": settings.intrinsics,
            "lens": None if settings.lens is None else [settings.lens.model, *settings.lens.params],
            **as_record(settings.refine, settings.dense, settings.points),
        }
        return Publisher(store, info, config, self._mark.is_counted, self._source.cautions)

    def revised(self, estimate: Estimate) -> Estimate:
        """An estimate of this stream as it is known now, after the loops that were closed since."""
        return estimate if self.engine is None else revised(estimate, self.engine)

    @property
    def figures(self) -> dict[str, Any]:
        """Frames, keyframes, dropped frames, frames a second, seconds from a frame's arrival to its estimate, seconds
        of work a frame, and memory, as JSON-ready values."""
        held = (0 if self.engine is None else self.engine.bytes) + (0 if self.cloud is None else self.cloud.bytes)
        return {
            "frames": self.frames,
            "keyframes": self.keyframes,
            "uncertain": self.uncertain,
            "dropped": self.dropped,
            "windows": 0 if self.engine is None else len(self.engine.placements),
            "revisions": 0 if self.engine is None else self.engine.version,
            "seconds": round(self.seconds, 3),
            "frames_a_second": round(self.delays.number / self.seconds, 3) if self.seconds else 0.0,
            "delay_s": self.delays.as_dict(),
            "work_s": self.works.as_dict(),
            "held_mb": round(held / 1e6, 2),
            "peak_memory_mb": peak_memory_mb(),
        }

    def __repr__(self) -> str:
        done = self.figures
        return (
            f"Stream({Source.describe(self._raw)[0]}: {done['frames']:,} frames, {done['keyframes']:,} keyframes, "
            f"{done['frames_a_second']:.1f} a second, {in_units(int(1e6 * done['held_mb']))} held)"
        )


def mark_of(checkpoint: Mapping[str, Any]) -> Mark:
    """Where the source goes on behind a checkpoint."""
    return Mark(**{name: checkpoint[name] for name in Mark._fields if name in checkpoint})
