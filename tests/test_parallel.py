"""Threads change nothing: the results of a loop, in its order, with its errors."""

from __future__ import annotations

import threading

import pytest
import torch

from lean3r.parallel import by_threads


def test_results_are_in_order_with_one_thread_inside() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        meeting = threading.Barrier(2, timeout=60)  # two at a time, or nobody passes
        found = by_threads(lambda i: (i, meeting.wait() >= 0, torch.get_num_threads()), range(8))
        assert found == [(i, True, 1) for i in range(8)] and torch.get_num_threads() == 3
        with pytest.raises(ZeroDivisionError):
            by_threads(lambda i: 1 // i, [2, 1, 0])
        assert torch.get_num_threads() == 3 and by_threads(str, []) == []
    finally:
        torch.set_num_threads(threads)
