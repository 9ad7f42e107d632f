"""The memory that jobs ask for is the memory that is counted."""

from __future__ import annotations

import memory
import pytest

from pedbench.estimate import timings

pytestmark = pytest.mark.system


@pytest.mark.parametrize(
    ("kind", "name", "row"),
    [
        ("par", "linear_probe", "linear_probe"),
        ("par", "full_finetune", "other"),
        ("par", "lora", "other"),
        ("par", "promptpar", "promptpar"),
        ("par", "ssf", "ssf"),
        ("reid", "full_finetune", "other"),
        ("reid", "clip_reid", "other"),
    ],
)
def test_rows_hold_what_a_count_finds(kind, name, row):
    counted = memory.count("ViT-B-16", kind, name, "default", memory.ATTRIBUTES)
    written = timings()["memory"][f"step_{kind}"]["ViT-B-16"][row]
    for found, said in zip(counted, written, strict=True):
        assert found / 1e6 <= said + 0.5
    assert counted[1] / 1e6 == pytest.approx(written[1], rel=0.4)
