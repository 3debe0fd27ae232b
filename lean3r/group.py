"""Processes that share one scene: each has some of its views; what crosses between them goes through here, counted."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from lean3r.errors import LeanError, UsageError
from lean3r.processes import launched

TIMEOUT_S = 600.0
HOW = "torchrun --nproc-per-node N -m lean3r reconstruct ... --parallel"


class Group:
    """The processes that share a scene; all of them make the same calls in the same order.

    `rank` is the number of this one, `size` how many there are. Process 0 reads the pictures and has the result; the
    others wait for their share (`hear`). `sent` counts the bytes of tensors that this process has sent to others, by
    purpose. Tensors on the CPU travel by gloo, those on NVIDIA GPUs by nccl. A call raises LeanError if another process
    has ended, or if none answers for `timeout_s`.
    """

    def __init__(self, processes: dist.ProcessGroup, timeout_s: float = TIMEOUT_S):
        self.processes = processes
        self.rank, self.size = processes.rank(), processes.size()
        self.local = 0
        self.timeout_s = timeout_s
        self.sent: Counter[str] = Counter()
        self.others_listen = True  # on process 0: until it has sent out the first shares

    @classmethod
    def join(cls, timeout_s: float = TIMEOUT_S) -> Self:
        """The group of processes that torchrun started; UsageError in a process that it did not start.

        For a `with` block, which leaves the group, and on process 0 tells waiting processes when it fails.
        """
        place = launched()
        if place is None:
            raise UsageError(
                f"--parallel shares a scene among processes, but this one was started alone; expected torchrun: {HOW}"
            )
        on_gpu = torch.cuda.is_available()
        if on_gpu and place.local >= (cards := torch.cuda.device_count()):
            raise UsageError(
                f"got process {place.local} of this machine, which has {cards} GPUs; expected a GPU for each process. "
                f"Start at most {cards} a machine (--nproc-per-node {cards}), or hide the GPUs to run on the CPU."
            )
        backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
        try:
            dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))
        except (RuntimeError, ValueError) as error:
            raise LeanError(
                f"process {place.rank} of {place.size} found no others ({_first_line(error)}); expected all processes "
                f"within {timeout_s:.0f} s. See why they ended, and start them by torchrun: {HOW}"
            ) from error
        assert dist.group.WORLD is not None
        group = cls(dist.group.WORLD, timeout_s)
        group.local = place.local
        if on_gpu:
            torch.cuda.set_device(place.local)
        return group

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self.rank == 0 and self.others_listen:
            with contextlib.suppress(LeanError):
                self.tell([Stop(str(error) or type(error).__name__)] * (self.size - 1))
        # After an error others may be in the middle of a call: leaving the group would wait for them.
        if error is None and dist.is_initialized():
            dist.destroy_process_group()

    def device(self, name: str) -> str:
        """The device of this process for --device: its own GPU, or the CPU."""
        if name == "mps":
            raise UsageError(
                "--device is mps, which one process uses alone; expected cpu or NVIDIA GPUs with --parallel."
            )
        return f"cuda:{self.local}" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else name

    def tell(self, notes: Sequence[Any]) -> None:
        """On process 0: send one picklable note to each other process, in their order."""
        with self._talking("sending notes"):
            for other, note in enumerate(notes, start=1):
                dist.send_object_list([note], group=self.processes, group_dst=other, device=torch.device("cpu"))

    def hear(self) -> Any:
        """On the others: the next note of process 0; LeanError if it says that it has failed."""
        notes: list[Any] = [None]
        with self._talking("waiting for process 0"):
            dist.recv_object_list(notes, group=self.processes, group_src=0, device=torch.device("cpu"))
        if isinstance(notes[0], Stop):
            time.sleep(1.0)  # torchrun ends the others with the first process: let process 0 say what failed
            raise LeanError(f"process {self.rank} of {self.size} stops, because process 0 failed: {notes[0].reason}")
        return notes[0]

    def report(self, note: Any) -> list[Any]:
        """The notes of all processes, on process 0; an empty list on the others."""
        found: list[Any] = [note]
        with self._talking("collecting notes"):
            if self.rank:
                dist.send_object_list([note], group=self.processes, group_dst=0, device=torch.device("cpu"))
                return []
            for other in range(1, self.size):
                notes: list[Any] = [None]
                dist.recv_object_list(notes, group=self.processes, group_src=other, device=torch.device("cpu"))
                found += notes
        return found

    def send(self, tensor: Tensor, to: int, purpose: str) -> None:
        """Send a tensor to one process, which calls `receive`."""
        with self._talking(f"sending {purpose}"):
            dist.send(_bytes_of(tensor), group=self.processes, group_dst=to)
        self.sent[purpose] += tensor.nbytes

    def receive(self, into: Tensor, source: int, purpose: str) -> None:
        """Receive a tensor from one process into a contiguous one of the same shape and type."""
        with self._talking(f"receiving {purpose}"):
            dist.recv(_bytes_of(into), group=self.processes, group_src=source)

    def gather(self, rows: Tensor, counts: Sequence[int], purpose: str) -> Tensor:
        """Rows of all processes in their order, `counts` of each, on every process: [count, ...] -> [sum, ...].

        Each process sends `size - 1` times as many rows as the longest share has.
        """
        if self.size == 1:
            return rows
        longest = max(counts)
        if len(rows) < longest:
            rows = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
        rows = rows.contiguous()
        out = rows.new_empty(self.size * longest, *rows.shape[1:])
        with self._talking(f"gathering {purpose}"):
            _gather(_bytes_of(out), _bytes_of(rows), group=self.processes)
        self.sent[purpose] += (self.size - 1) * rows.nbytes
        if min(counts) == longest:
            return out
        return torch.cat([part[:count] for part, count in zip(out.split(longest), counts, strict=True)])

    def exchange(self, rows: Tensor, counts: Sequence[int], purpose: str) -> tuple[Tensor, list[int]]:
        """Send rows [sum(counts), ...], the next counts[r] to process r; the rows from all in their order, and how many
        each has sent."""
        if self.size == 1:
            return rows, list(counts)
        asked = self.gather(torch.tensor([counts], device=rows.device), [1] * self.size, "counts")
        coming = asked[:, self.rank].tolist()
        rows = rows.contiguous()
        out = rows.new_empty(sum(coming), *rows.shape[1:])
        width = rows[:1].nbytes if len(rows) else rows.new_empty(1, *rows.shape[1:]).nbytes
        with self._talking(f"exchanging {purpose}"):
            dist.all_to_all_single(
                _bytes_of(out),
                _bytes_of(rows),
                [count * width for count in coming],
                [count * width for count in counts],
                group=self.processes,
            )
        self.sent[purpose] += (len(rows) - counts[self.rank]) * width
        return out, coming

    @contextlib.contextmanager
    def _talking(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise LeanError(
                f"process {self.rank} of {self.size} lost the others while {what} ({_first_line(error)}). Either one "
                f"has ended, and its own message says why, or none has answered for {self.timeout_s:.0f} s. "
                "Nothing was written; start all of them again."
            ) from error


@dataclass(frozen=True)
class Stop:
    """The note that process 0 has failed, and why."""

    reason: str


@dataclass(frozen=True)
class Share:
    """Which views of a scene one process of a group has: `counts` views for each, in order."""

    group: Group
    counts: tuple[int, ...]

    @classmethod
    def of(cls, group: Group, total: int) -> Share:
        """Equal shares of `total` views, the first processes with one more if that does not come out even.

        UsageError if there are fewer views than processes.
        """
        if total < group.size:
            raise UsageError(
                f"got {total} views for {group.size} processes; expected at least one view for each. Start "
                f"{total} processes or fewer (--nproc-per-node {total}), or give more pictures."
            )
        each, more = divmod(total, group.size)
        return cls(group, tuple(each + (rank < more) for rank in range(group.size)))

    @property
    def total(self) -> int:
        """Views of the scene."""
        return sum(self.counts)

    @property
    def count(self) -> int:
        """Views of this process."""
        return self.counts[self.group.rank]

    @property
    def first(self) -> int:
        """The number of this process's first view in the scene."""
        return sum(self.counts[: self.group.rank])

    @property
    def starts(self) -> list[int]:
        """The numbers of the first views of all processes, and the number of views."""
        return [0, *accumulate(self.counts)]

    def gather(self, values: Tensor, dim: int = 1, *, each: int = 1, purpose: str = "cameras") -> Tensor:
        """Values of this process's views, `each` of a view along `dim` -> those of all views."""
        rows = values.movedim(dim, 0)
        found = self.group.gather(rows, [each * count for count in self.counts], purpose)
        return found.movedim(0, dim)

    def gather_pair(self, k: Tensor, v: Tensor, each: int, purpose: str) -> tuple[Tensor, Tensor]:
        """Keys and values [B, H, N, D] of this process's views, `each` of a view -> those of all views."""
        keys, values = self.gather(torch.stack([k, v]), 3, each=each, purpose=purpose)
        return keys, values

    def own(self, values: Tensor, dim: int = 1) -> Tensor:
        """Of values of all views along `dim`, those of this process."""
        return values.narrow(dim, self.first, self.count)

    def parts(self, values: Tensor) -> Tensor:
        """What each process has to say of its share [n, ...], the same on each."""
        return self.group.gather(values[None], [1] * self.group.size, "sums")


def among_all(share: Share | None, call: Callable[..., Tensor], *values: Tensor) -> Tensor:
    """call(*values [B, S, ...]) -> [B, S, ...] where each view may depend on all: for few numbers a view."""
    return call(*values) if share is None else share.own(call(*(share.gather(value) for value in values)))


def of_all(share: Share | None, values: Tensor) -> Tensor:
    """Values [B, S, ...] of all views of a scene: few numbers a view."""
    return values if share is None else share.gather(values)


# The name of newer torch, and that of before.
_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def _bytes_of(tensor: Tensor) -> Tensor:
    """The bytes of a contiguous tensor, for any number type, in one row."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
