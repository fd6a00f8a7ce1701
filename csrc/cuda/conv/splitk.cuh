// The second kernel of a split convolution adds the slices in their order and runs the common epilogue.
#pragma once

#include "cuda/conv/epilogue.cuh"

namespace resnet_fused::cuda {

// A block of 64 threads finishes 8 pixels x 64 columns. Blocks are small because split convolutions are small: 49
// pixels x 512 channels still occupy 56 multiprocessors.
inline constexpr int kReduceRows = 8, kReduceColumns = 64, kReduceThreads = 64;

// Grid: x = 8 pixels, y = 64 columns. A column is an output channel or padding.
template <class Element>
__global__ void __launch_bounds__(kReduceThreads) conv_reduce_kernel(const ConvArgs args) {
  const int64_t column0 = static_cast<int64_t>(ptx::bid_y()) * kReduceColumns;
  const int64_t padded_k = args.padded_n / args.groups;
  const int64_t group = column0 / padded_k, n0 = column0 % padded_k;
  const uint32_t smem = ptx::smem_base();
  stage_norm<kReduceColumns>(args.epilogue.norm, smem, group * args.k + n0, (group + 1) * args.k);
  ptx::sync_threads();

  const int chunk = ptx::tid() % 8;
  const int64_t m = static_cast<int64_t>(ptx::bid_x()) * kReduceRows + ptx::tid() / 8;
  const int64_t left = args.k - (n0 + 8 * chunk);
  if (m >= args.m || left <= 0) return;
  const int valid = left < 8 ? static_cast<int>(left) : 8;

  const int64_t plane = args.padded_m * args.padded_n;
  const float* from = args.partial + m * args.padded_n + column0 + 8 * chunk;
  Sums sums[2] = {};
#pragma unroll 4
  for (int slice = 0; slice < args.splits; ++slice, from += plane) {
    const Sums low = ptx::ld_global<Sums>(from), high = ptx::ld_global<Sums>(from + 4);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      sums[0].v[e] = ptx::add(sums[0].v[e], low.v[e]);
      sums[1].v[e] = ptx::add(sums[1].v[e], high.v[e]);
    }
  }
  const int64_t at = m * args.out_channels() + group * args.k + n0 + 8 * chunk;
  Eight<Element> residual{};
  if (args.epilogue.residual) residual = load_residual<Element>(args, at, valid);
  finish<Element, kReduceColumns>(args, smem + 32 * chunk, sums, residual, at, valid);
}

}  // namespace resnet_fused::cuda
