// Batch statistics of several processes, merged after a collective.
#pragma once

#include "cuda/base/partial.cuh"

namespace resnet_fused::cuda {

// Merges over processes (parts: see ops.h). Means are taken relative to the first mean, so that their differences are
// exact before anything is rounded.
__global__ void __launch_bounds__(kMergeThreads)
    bn_stats_over_processes_kernel(int64_t world, int64_t channels, const float* parts, float count, float eps,
                                   float* mean, float* invstd, float* var, float* share) {
  const int across = ptx::tid() % kMergeWide, along = ptx::tid() / kMergeWide;
  const int64_t c = static_cast<int64_t>(ptx::bid_x()) * kMergeWide + across, row = 2 * channels + 1;
  const bool active = c < channels;
  Moments<1> total;
  float pivot = 0;
  if (active) {
    int64_t first = 0;
    while (first < world - 1 && ptx::ld_global_nc<float>(parts + first * row + 2 * channels) == 0.0f) ++first;
    pivot = ptx::ld_global_nc<float>(parts + first * row + c);
    for (int64_t rank = along; rank < world; rank += kMergeHigh) {
      const float* from = parts + rank * row;
      Moments<1> part;
      part.count = ptx::ld_global_nc<float>(from + 2 * channels);
      if (part.count == 0.0f) continue;
      part.mean[0] = ptx::add(ptx::ld_global_nc<float>(from + c), -pivot);
      // The variance of one value is NaN (0 / 0), so it is not read.
      const float unbiased = part.count > 1.0f ? ptx::ld_global_nc<float>(from + channels + c) : 0.0f;
      part.m2[0] = ptx::mul(unbiased, ptx::add(part.count, -1.0f));
      total.merge(part);
    }
  }
  merge_block(total, across, along, kMergeWide, kMergeHigh, active);
  if (active && along == 0) {
    ptx::st_global(mean + c, ptx::add(pivot, total.mean[0]));
    ptx::st_global(invstd + c, ptx::div(1.0f, ptx::sqrt(ptx::add(ptx::div(total.m2[0], total.count), eps))));
    ptx::st_global(var + c, ptx::div(total.m2[0], ptx::add(total.count, -1.0f)));
    ptx::st_global(share + c, ptx::div(count, total.count));
  }
}

}  // namespace resnet_fused::cuda
