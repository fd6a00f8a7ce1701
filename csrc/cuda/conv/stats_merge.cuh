// Second stage of conv_stats: merges the moments of the tiles in a fixed order and finishes as bn_stats does.
#pragma once

#include "cuda/conv/stats.cuh"
#include "cuda/norms/bn_stats.cuh"

namespace resnet_fused::cuda {

// Grid: x = kMergeWide channels. kMergeHigh threads share the chunks of each channel.
__global__ void __launch_bounds__(kMergeThreads)
    conv_stats_merge_kernel(const float* moments, int64_t chunks, int64_t channels, int64_t count, BatchStatistics to) {
  const int across = ptx::tid() % kMergeWide, along = ptx::tid() / kMergeWide;
  const int64_t c = static_cast<int64_t>(ptx::bid_x()) * kMergeWide + across;
  const bool active = c < channels;
  Moments<1> total;
  // the first chunk's pivot serves all chunks
  const float pivot = active ? ptx::ld_global_nc<float>(moments + c) : 0.0f;
  if (active) {
    for (int64_t chunk = along; chunk < chunks; chunk += kMergeHigh) {
      const float* from = moments + chunk * TileMoments::kWords * channels + c;
      TileMoments m;
      m.pivot = ptx::ld_global_nc<float>(from);
      m.about.count = ptx::ld_global_nc<float>(from + channels);
      m.about.mean[0] = ptx::ld_global_nc<float>(from + 2 * channels);
      m.about.m2[0] = ptx::ld_global_nc<float>(from + 3 * channels);
      total.merge(m.about_pivot(pivot));
    }
  }
  merge_block(total, across, along, kMergeWide, kMergeHigh, active);
  if (active && along == 0) finish_statistics(to, total, pivot, count, c);
}

}  // namespace resnet_fused::cuda
