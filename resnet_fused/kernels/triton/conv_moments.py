"""Batch statistics in the epilogue of a convolution: the moments of one tile, computed from the stored values."""

import triton
import triton.language as tl


@triton.jit
def store_moments(acc, valid, n, part, first, k, base, channels, STORED: tl.constexpr, partial_ptr, slices):
    """Reduces the n `valid` rows of `acc` to pivot, mean - pivot and M2 of its columns, as slice `part` in the layout
    of bn_stats.py: three planes [slices, channels], then the counts [slices].

    first, k: first column and number of columns of a group that begins at channel `base`. STORED: the dtype of the
    stored values.
    """
    ROWS: tl.constexpr = acc.shape[0]
    COLUMNS: tl.constexpr = acc.shape[1]
    if COLUMNS > 32:  # limits the registers, as in the epilogue of evaluation
        halves = tl.split(tl.permute(tl.reshape(acc, [ROWS, 2, COLUMNS // 2]), [0, 2, 1]))
        for i in tl.static_range(2):
            store_moments(
                halves[i], valid, n, part, first + i * (COLUMNS // 2), k, base, channels, STORED, partial_ptr, slices
            )  # fmt: skip
    else:
        column = first + tl.arange(0, COLUMNS)
        column_mask = column < k
        # Statistics belong to the rounded values: with a mean of 10 and a deviation of 0.01 those of bfloat16 differ
        # twofold.
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
