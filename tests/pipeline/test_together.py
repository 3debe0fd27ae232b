"""One scene on several processes: what they find together is what one finds alone, and what they send is counted."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from contracts.tiny import tiny
from torch import Tensor

from lean3r.attention import ATTENTION
from lean3r.attention.coarse_fine import Gsa
from lean3r.errors import LeanError, UsageError
from lean3r.group import Group, Share
from lean3r.layers import matching
from lean3r.layers.block import Block
from lean3r.models import MODELS
from lean3r.models.base import Backbone
from lean3r.models.no_network import NoNetwork
from lean3r.models.shared import check_shares
from lean3r.models.vggt import Vggt
from lean3r.pipeline.predict import predict
from lean3r.pipeline.together import Task, check_group, predict_together, take_share
from lean3r.types import Known, Prediction, Source, Views

SIZES = (4, 2)
VIEWS, ROWS, COLS = 5, 5, 3  # uneven shares of portrait pictures
NAMES = [name for name in MODELS if MODELS.get(name).SEES]


@dataclass(frozen=True)
class Case:
    """One scene for a model: `gsa` replaces the mechanism of its global blocks; `known` names what it is told."""

    model: str
    views: int = VIEWS
    mask: bool = False
    gsa: tuple[tuple[str, object], ...] | None = None
    known: tuple[str, ...] = ()
    reference: int | None = None
    many: int | None = None  # nano matches each view with some others from so many views on

    def scene(self) -> Views:
        """Random pictures, and what is known of them."""
        generator = torch.Generator().manual_seed(7)
        patch = tiny(self.model).patch
        images = torch.rand(1, self.views, 3, ROWS * patch, COLS * patch, generator=generator)
        mask = None
        if self.mask:
            mask = torch.ones(1, self.views, *images.shape[-2:], dtype=torch.bool)
            mask[:, 1, :patch] = False
            mask[:, -2, :, -patch:] = False
        sources = tuple(Source(f"{n}.jpg", 10, 10, focal_px=40.0 + n) for n in range(self.views))
        return Views(images, mask, sources, self._known(images, generator) if self.known else None)

    def _known(self, images: Tensor, generator: torch.Generator) -> Known:
        pose = torch.eye(4).expand(1, self.views, 4, 4).clone()
        pose[..., :3, 3] = torch.rand(1, self.views, 3, generator=generator)
        intrinsics = torch.tensor([[50.0, 0, 20], [0, 50, 30], [0, 0, 1]]).expand(1, self.views, 3, 3).clone()
        depth = 1 + torch.rand(1, self.views, *images.shape[-2:], generator=generator)
        has = torch.ones(1, self.views, dtype=torch.bool)
        has[:, 1] = False
        parts = {"cam_from_world": pose, "intrinsics": intrinsics, "depth": depth, "has_pose": has, "has_depth": has}
        return Known(**{name: parts[name] for name in self.known})


SPARSE = (("window", 2), ("top_k", 2))
CASES: dict[str, Case] = {
    **{name: Case(name, mask=len(name) % 2 == 0) for name in NAMES},
    "vggt, its first view": Case("vggt", reference=3),
    "vggt, gsa": Case("vggt", gsa=SPARSE),
    "vggt, gsa of padded pictures, views seen by all": Case(
        "vggt", mask=True, gsa=(*SPARSE, ("reference", True), ("every", 3))
    ),
    "pi3, gsa, views seen by all": Case("pi3", gsa=(*SPARSE, ("every", 2), ("kv", "fp8"))),
    "pi3, gsa with pooled special tokens": Case("pi3", mask=True, gsa=(*SPARSE, ("special", "pooled"))),
    "nano, gsa of odd windows": Case("nano", gsa=(("window", 4), ("top_k", 1), ("gate", "one"))),
    "pi3, one view each": Case("pi3", views=4),
    "nano, some partners": Case("nano", views=8, mask=True, many=6),
    "da3-small, its first view": Case("da3-small", reference=1),
    "da3-small, known cameras": Case("da3-small", known=("cam_from_world", "intrinsics")),
    "da3-small, some known cameras": Case("da3-small", known=("cam_from_world", "intrinsics", "has_pose")),
    "pi3x, known poses": Case("pi3x", known=("cam_from_world", "intrinsics", "has_pose")),
    "pi3x, known depth": Case("pi3x", known=("cam_from_world", "depth", "has_depth"), mask=True),
}
ONCE = ("da3-base", "da3-large", "da3-giant")  # the same code as da3-small: with one number of processes only
RUNS = [(name, size) for size in SIZES for name in CASES if size == max(SIZES) or name not in ONCE]


def compare(expected: Prediction, found: Prediction) -> float:
    """The largest difference of two predictions, relative to the largest value of each part."""
    assert found.is_metric == expected.is_metric
    worst = 0.0
    for name in ("depth", "conf", "cam_from_world", "intrinsics"):
        one, other = getattr(expected, name), getattr(found, name)
        assert one.shape == other.shape and other.dtype == torch.float32
        worst = max(worst, float((one - other).abs().max() / one.abs().max().clamp_min(1)))
    return worst


@cache
def network(case: Case) -> Backbone:
    """The model, random and tiny."""
    if case.gsa is None:
        return tiny(case.model)
    model = tiny.__wrapped__(case.model)  # one of its own; a copy would take three times as long
    with torch.random.fork_rng():
        torch.manual_seed(3)
        for role, block in zip(model.trunk.schedule, model.trunk.blocks, strict=True):  # type: ignore[union-attr, arg-type]
            if role == "global" and isinstance(block, Block):
                dim, heads = block.attn.qkv.in_features, block.attn.heads
                block.attn.mechanism = Gsa(dim, heads, **dict(case.gsa))  # type: ignore[arg-type]
                if block.attn.mechanism.gate is not None:
                    torch.nn.init.normal_(block.attn.mechanism.gate.weight, std=0.3)
    return model.eval()


@cache
def alone(case: Case) -> tuple[Prediction, Prediction]:
    """What one process finds in all views, and in the last two by themselves; the same for any number of processes."""
    model, views = network(case), case.scene()
    last = Views(views.images[:, -2:], None if views.mask is None else views.mask[:, -2:])
    return predict(model, views, case.reference), predict(model, last)


def run(case: Case, group: Group) -> dict[str, Any]:
    """A scene on the group and alone: how much they differ, and what each process has sent."""
    model, group.sent = network(case), type(group.sent)()
    if case.many is not None:
        matching.MANY, matching.PARTNERS = case.many, 3
    try:
        if group.rank:
            take_share(model, group)
            return {"sent": dict(group.sent)}
        found = predict_together(model, case.scene(), case.reference, group)
        sent = dict(group.sent)
        expected, last = alone(case)
        differs = float((last.depth - expected.depth[:, -2:]).abs().max())  # type: ignore[index, operator]
        return {"error": compare(expected, found), "alone": differs, "sent": sent}
    finally:
        matching.MANY, matching.PARTNERS = 50, 32


def fails(call: Callable[[], object]) -> tuple[str, float]:
    """The message of the LeanError that a call raises, and after how many seconds."""
    start = time.monotonic()
    try:
        call()
    except LeanError as error:
        return str(error), time.monotonic() - start
    return "", time.monotonic() - start


def failures(group: Group, rank: int) -> dict[str, Any]:
    """What this process says when process 0 fails, when another does not answer, and when another dies."""
    model, found = tiny("vggt"), {}

    def tells() -> None:
        with Group(group.processes) as again:
            if rank == 0:
                raise UsageError("no picture was found")
            take_share(model, again)

    found["process 0 fails"] = fails(tells)
    impatient = dist.new_group(list(range(4)), timeout=timedelta(seconds=1), backend="gloo")
    if rank < 2:
        waiting = Group(cast(dist.ProcessGroup, impatient), 1.0)
        found["no answer"] = fails(lambda: waiting.gather(torch.zeros(1), [1] * 4, "keys"))
    else:
        time.sleep(2)
    if rank == 3:
        group.hear()
        os._exit(9)
    scene = Case("vggt").scene()
    work = partial(take_share, model, group) if rank else partial(predict_together, model, scene, None, group)
    found["one dies"] = fails(work)
    return found


def process(rank: int, folder: str) -> None:
    """One of the processes: runs all cases with four and with two, then the failures; leaves its results as a file."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    patience = timedelta(seconds=120)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", patience, world_size=max(SIZES), rank=rank)
    results: dict[str, Any] = {}
    path = Path(folder) / f"{rank}.pickle"
    for size in SIZES:
        some = dist.new_group(list(range(size)), backend="gloo")
        if rank < size:
            group = Group(cast(dist.ProcessGroup, some), 120.0)
            for name in (name for name, processes in RUNS if processes == size):
                results[f"{name}, {size}"] = run(CASES[name], group)
                path.write_bytes(pickle.dumps(results))
    assert dist.group.WORLD is not None
    results["failures"] = failures(Group(dist.group.WORLD, 120.0), rank)
    path.write_bytes(pickle.dumps(results))
    os._exit(0)  # what is left of the group would wait for the dead


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of each process, what it found; torch is imported once for all."""
    folder = tmp_path_factory.mktemp("together")
    context = get_context("forkserver")
    context.set_forkserver_preload(["test_together"])
    started = [context.Process(target=process, args=(rank, str(folder))) for rank in range(max(SIZES))]
    for each in started:
        each.start()
    for each in started:
        each.join(300)
        assert each.exitcode is not None, "a process hangs"
    return [
        pickle.loads(file.read_bytes()) if (file := folder / f"{rank}.pickle").is_file() else {}
        for rank in range(max(SIZES))
    ]


@pytest.mark.parametrize(("name", "size"), RUNS)
def test_processes_find_what_one_finds(results: list[dict[str, Any]], name: str, size: int) -> None:
    found = results[0][f"{name}, {size}"]
    assert found["error"] < 1e-5
    if not name.startswith("da3m"):  # models of single views
        assert found["alone"] > 1e-4, "the views of other processes matter"


def dense_bytes(size: int) -> int:
    """What each process sends of keys and values in one block across views of the tiny VGGT, in float32."""
    config = Vggt.SMALLEST
    longest = -(-VIEWS // size)
    return 2 * (size - 1) * longest * (5 + ROWS * COLS) * config.width * 4


@pytest.mark.parametrize("size", SIZES)
def test_bytes_sent_are_those_of_the_formulas(results: list[dict[str, Any]], size: int) -> None:
    blocks, width, longest = Vggt.SMALLEST.pairs, Vggt.SMALLEST.width, -(-VIEWS // size)
    found = [results[rank][f"vggt, {size}"]["sent"] for rank in range(size)]
    assert [sent["keys"] for sent in found] == [blocks * dense_bytes(size)] * size
    pictures = 3 * ROWS * COLS * Vggt.patch**2 * 4
    counts = [Share.of(cast(Group, SimpleNamespace(rank=rank, size=size)), VIEWS).counts[rank] for rank in range(size)]
    mask = pictures // 12  # a byte for each pixel
    assert found[0]["pictures"] == (VIEWS - counts[0]) * (pictures + mask)
    maps = 2 * 4 * mask + (16 + 9) * 4
    assert [sent.get("results", 0) for sent in found] == [0, *(count * maps for count in counts[1:])]

    sparse = [results[rank][f"vggt, gsa, {size}"]["sent"] for rank in range(size)]
    windows, heads = 3 * 2, Vggt.SMALLEST.heads
    coarse = blocks * 2 * (size - 1) * longest * windows * width * 4
    asked = sum(sent["requests"] for sent in sparse) // 4
    assert [sent["coarse"] for sent in sparse] == [coarse] * size
    assert sum(sent["windows"] for sent in sparse) == asked * 2 * 4 * (width // heads) * 4
    special = blocks * 3 * (size - 1) * longest * 5 * width * 4
    answers = [blocks * (VIEWS - count) * 5 * heads * (width // heads + 1) * 4 for count in counts]
    assert [sent["special"] for sent in sparse] == [special + answer for answer in answers]
    assert "keys" not in sparse[0] and all("matches" not in sent for sent in sparse)


def test_a_failure_of_process_0_is_told(results: list[dict[str, Any]]) -> None:
    for rank in range(3):
        said, _ = results[rank]["failures"]["process 0 fails"]
        assert "no picture was found" in said
        assert rank == 0 or said.startswith(f"process {rank} of 4 stops, because process 0 failed")


def test_a_process_that_dies_or_hangs_ends_the_others(results: list[dict[str, Any]]) -> None:
    for rank in range(3):
        said, seconds = results[rank]["failures"]["one dies"]
        assert said.startswith(f"process {rank} of 4 lost the others while") and "Nothing was written" in said
        assert seconds < 60, "the end of a process is seen at once"
    for rank in range(2):
        said, _ = results[rank]["failures"]["no answer"]
        assert "lost the others while gathering keys" in said and "for 1 s" in said
    assert results[3] != {} and "failures" not in results[3]


@pytest.mark.parametrize("name", list(ATTENTION))
def test_mechanisms_share_their_views_or_say_why_not(name: str) -> None:
    model = deepcopy(tiny("vggt"))
    block = model.trunk.blocks[1]  # type: ignore[union-attr, index]
    kind = ATTENTION.get(name)
    given = {"dim": 32, "heads": 2}
    block.attn.mechanism = kind(**{key: given[key] for key in given if key in kind.__init__.__code__.co_varnames})  # type: ignore[union-attr]
    if name in ("dense", "gsa", "frame_local"):
        check_shares(model)
        return
    with pytest.raises(UsageError, match=r"cannot be shared among processes: .*--plan dense or gsa"):
        check_shares(model)


def test_what_cannot_be_shared_is_refused() -> None:
    with pytest.raises(UsageError, match="no network"):
        check_shares(NoNetwork())
    model = deepcopy(tiny("vggt"))
    model.trunk.blocks[1].attn.mechanism = Gsa(32, 2, regions=2)  # type: ignore[union-attr, index]
    with pytest.raises(UsageError, match="regions=2"):
        check_shares(model)
    model.graphs = lambda *_, **__: None  # type: ignore[assignment, return-value]
    with pytest.raises(UsageError, match="--cuda-graphs"):
        check_shares(model)
    group = cast(Group, SimpleNamespace(rank=0, size=4))
    with pytest.raises(UsageError, match="got 3 views for 4 processes; expected at least one view for each"):
        Share.of(group, 3)
    with pytest.raises(UsageError, match="memory"):
        check_group(tiny("nano"), group, "8GB")
    with pytest.raises(UsageError, match="take_share"):
        check_group(tiny("nano"), cast(Group, SimpleNamespace(rank=1, size=4)), None)


def test_another_model_on_another_process_is_found() -> None:
    task = Task(("pi3", "1 parameters", "torch.float32", "no plan"), (1, 1), {}, (), {})
    with pytest.raises(LeanError, match=r"process 1 has loaded vggt, .*expected pi3"):
        take_share(tiny("vggt"), cast(Group, SimpleNamespace(rank=1, hear=lambda: task)))


@pytest.mark.parametrize("size", [1, 3])
def test_shares_come_in_order_and_as_equal_as_may_be(size: int) -> None:
    share = Share.of(cast(Group, SimpleNamespace(rank=size - 1, size=size)), 5)
    assert share.total == 5 and sorted(share.counts, reverse=True) == list(share.counts)
    assert max(share.counts) - min(share.counts) <= 1 and share.starts[-1] == 5
    assert share.own(torch.arange(5), 0).tolist() == list(range(share.first, 5))
