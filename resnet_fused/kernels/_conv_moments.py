"""Batch statistics in the epilogue of a convolution: the moments of one tile, of the values as they are stored."""

import triton
import triton.language as tl


@triton.jit
def store_moments(acc, start, first, group, m, k, out_ptr, partial_ptr, slices):
    """Rows of `acc` below m - start -> pivot, mean - pivot and M2 of its columns, the layout of _bn_stats.py: three planes
    [slices, channels], then the counts [slices]. A slice is a row of tiles."""
    ROWS: tl.constexpr = acc.shape[0]
    COLUMNS: tl.constexpr = acc.shape[1]
    if COLUMNS > 32:  # for the registers, as in the epilogue of evaluation
        halves = tl.split(tl.permute(tl.reshape(acc, [ROWS, 2, COLUMNS // 2]), [0, 2, 1]))
        for i in tl.static_range(2):
            store_moments(halves[i], start, first + i * (COLUMNS // 2), group, m, k, out_ptr, partial_ptr, slices)
    else:
        lane = tl.arange(0, ROWS)
        column = first + tl.arange(0, COLUMNS)
        column_mask = column < k
        channels = k * tl.num_programs(1)
        valid = (lane < m - start)[:, None]
        n = tl.minimum(m - start, ROWS).to(tl.float32)
        # Statistics belong to the rounded value: with a mean of 10 and a deviation of 0.01 they differ twofold in bfloat16.
        stored = tl.where(valid, acc.to(out_ptr.dtype.element_ty).to(tl.float32), 0.0)
        pivot = tl.sum(stored, axis=0) / n
        d = tl.where(valid, stored - pivot[None, :], 0.0)
        shift = tl.sum(d, axis=0) / n
        m2 = tl.sum(d * d, axis=0) - n * shift * shift
        plane = tl.cast(slices, tl.int64) * channels
        part = start // ROWS
        to = partial_ptr + part * channels + group * k + column
        tl.store(to, pivot, mask=column_mask)
        tl.store(to + plane, shift, mask=column_mask)
        tl.store(to + 2 * plane, tl.where(m2 < 0.0, 0.0, m2), mask=column_mask)
        tl.store(partial_ptr + 3 * plane + part, n)
