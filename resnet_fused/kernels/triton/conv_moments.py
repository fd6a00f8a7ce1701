"""Batch statistics in the epilogue of a convolution: the moments of one tile, of the values as they are stored."""

import triton
import triton.language as tl


@triton.jit
def store_moments(acc, valid, n, part, first, k, base, channels, STORED: tl.constexpr, partial_ptr, slices):
    """The n rows of `acc` that are `valid` -> pivot, mean - pivot and M2 of its columns, as slice `part` of the layout of
    bn_stats.py: three planes [slices, channels], then the counts [slices].

    first, k: of the columns within a group that begins at channel `base`. STORED: the type in which `acc` is stored.
    """
    ROWS: tl.constexpr = acc.shape[0]
    COLUMNS: tl.constexpr = acc.shape[1]
    if COLUMNS > 32:  # for the registers, as in the epilogue of evaluation
        halves = tl.split(tl.permute(tl.reshape(acc, [ROWS, 2, COLUMNS // 2]), [0, 2, 1]))
        for i in tl.static_range(2):
            store_moments(
                halves[i], valid, n, part, first + i * (COLUMNS // 2), k, base, channels, STORED, partial_ptr, slices
            )  # fmt: skip
    else:
        column = first + tl.arange(0, COLUMNS)
        column_mask = column < k
        # Statistics belong to the rounded value: with a mean of 10 and a deviation of 0.01 they differ twofold in bfloat16.
        stored = tl.where(valid[:, None], acc.to(STORED).to(tl.float32), 0.0)
        pivot = tl.sum(stored, axis=0) / n
        d = tl.where(valid[:, None], stored - pivot[None, :], 0.0)
        shift = tl.sum(d, axis=0) / n
        m2 = tl.sum(d * d, axis=0) - n * shift * shift
        plane = tl.cast(slices, tl.int64) * channels
        to = partial_ptr + tl.cast(part, tl.int64) * channels + base + column
        tl.store(to, pivot, mask=column_mask)
        tl.store(to + plane, shift, mask=column_mask)
        tl.store(to + 2 * plane, tl.where(m2 < 0.0, 0.0, m2), mask=column_mask)
        tl.store(partial_ptr + 3 * plane + part, n)
