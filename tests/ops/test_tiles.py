"""Lists of key blocks that neighbours share: the union holds every block once, and the lists can be read back."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

pytest.importorskip("triton")

from lean3r.ops import tiles
from lean3r.ops.tiles import group_constants, last_dim_dense, unions


@pytest.mark.parametrize("longest", [512, 1])
@pytest.mark.parametrize(("query_block", "listed"), [(16, 3), (32, 5), (64, 4), (128, 2)])
def test_unions_hold_each_block_as_often_as_a_list_names_it(
    query_block: int, listed: int, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "LONGEST", longest)  # of lists that are sorted; longer ones are counted
    monkeypatch.setattr(tiles, "TABLE_BYTES", 3 * 4 * 9)  # for three groups at a time
    key_blocks, count = 9, 5
    blocks = torch.randint(-2, key_blocks + 2, (1, 2, count, listed), generator=torch.Generator().manual_seed(listed))
    union, counts, lengths = unions(blocks.int(), query_block, key_blocks)
    constants = group_constants(query_block, listed, union.shape[2])
    members, bits = constants["MEMBERS"], constants["BITS"]
    assert union.shape == (2, -(-count // members), constants["SIZE"]) and constants["ROWS"] >= members * query_block
    for head in range(2):
        for group, length in enumerate(lengths[head].tolist()):
            found = union[head, group, :length].tolist()
            assert found == sorted(set(found))
            running = counts[head, group, :length].tolist()
            for member in range(members):
                row = group * members + member
                own = blocks[0, head, row].tolist() if row < count else []
                totals = [total >> member * bits & (1 << bits) - 1 for total in running]
                times = [b - a for a, b in zip([0, *totals], totals, strict=False)]
                named = {block: n for block, n in zip(found, times, strict=True) if n}
                assert named == Counter(block for block in own if 0 <= block < key_blocks)


def test_rows_are_copied_only_if_not_contiguous() -> None:
    x = torch.randn(2, 3, 4)
    assert last_dim_dense(x) is x and last_dim_dense(x.transpose(0, 1)).data_ptr() == x.data_ptr()
    apart = x.transpose(1, 2)
    assert last_dim_dense(apart).stride(-1) == 1 and torch.equal(last_dim_dense(apart), apart)
