"""torch's operations on many tensors at once; torch exports them under private names."""

import torch

lerp = torch._foreach_lerp  # pyright: ignore[reportPrivateImportUsage]
lerp_ = torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage]
mul_ = torch._foreach_mul_  # pyright: ignore[reportPrivateImportUsage]
