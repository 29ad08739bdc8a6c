"""Splitting the global batch over workers."""

import pytest

from lib.distributed.strategy import split_batch


@pytest.mark.parametrize(
    ("batch", "micro", "workers", "expected"),
    [
        (32, 8, 1, (8, 4)),
        (32, 8, 2, (8, 2)),
        (32, 8, 4, (8, 1)),
        (32, 100, 2, (16, 1)),
        (12, 8, 1, (6, 2)),
        (7, 4, 1, (1, 7)),
        (6, 4, 2, (3, 1)),
    ],
)
def test_literal(batch, micro, workers, expected):
    assert split_batch(batch, micro, workers) == expected


def test_product_is_always_the_global_batch():
    for batch in range(1, 65):
        for micro in (1, 3, 8, 100):
            for workers in (w for w in range(1, 9) if batch % w == 0):
                per_device, accumulation = split_batch(batch, micro, workers)
                assert per_device * accumulation * workers == batch and per_device <= micro


def test_indivisible_names_key_and_remedy():
    with pytest.raises(ValueError, match=r"scale.global_batch: 10 .* 4 workers .*Use 8 or 12"):
        split_batch(10, 8, 4)
