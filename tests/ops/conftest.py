"""Where kernels are tested: on the GPU if there is one, else in Triton's interpreter (see the root conftest)."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session")
def kernel_device() -> torch.device:
    """Device on which Triton kernels run in the tests; skips without triton."""
    pytest.importorskip("triton", reason="triton is not installed")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
