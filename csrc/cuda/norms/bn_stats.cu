// Launches of bn_stats: moments per chunk, then their merge in a fixed order. bn_stats_merge: the merge over processes.
#include "cuda/base/launch.h"
#include "cuda/norms/bn_stats.cuh"
#include "cuda/norms/bn_stats_merge.cuh"

namespace resnet_fused::cuda {

size_t bn_stats_scratch(Layout layout) { return reduction_scratch(layout, "bn_stats", Moments<1>::kWords); }

void bn_stats(Layout layout, const void* x, float* mean, float* invstd, MutableChannels running_mean,
              MutableChannels running_var, const int64_t* num_batches_tracked, double momentum, double eps,
              void* scratch, void* stream) {
  float* partial = static_cast<float*>(scratch);
  const BatchStatistics to{mean,
                           invstd,
                           running_mean,
                           running_var,
                           num_batches_tracked,
                           static_cast<float>(momentum),
                           static_cast<float>(eps)};
  with_type(layout.dtype, [&](auto element) {
    using T = decltype(element);
    with_walk<T>(layout, vector_width<T>(layout, static_cast<const char*>(x)), [&](auto n, auto planes) {
      using Partial = Moments<Walk<n, planes>::kChannels>;
      const Share s = reduction_share(layout, n, multiprocessors("bn_stats"));
      launch("bn_stats", bn_stats_kernel<T, n, planes>, {s.tiles, s.chunks}, kWalkThreads,
             merge_bytes<Partial>(kWalkThreads), stream, s, static_cast<const T*>(x), partial);
      launch("bn_stats", bn_stats_merge_kernel<T>, {ceil_divide(layout.channels, kMergeWide)}, kMergeThreads,
             merge_bytes<Moments<1>>(kMergeThreads), stream, s, static_cast<const T*>(x), partial, layout.count(), to);
    });
  });
}

void bn_stats_merge(int64_t world, int64_t channels, const float* parts, double count, double eps, float* mean,
                    float* invstd, float* var, float* share, void* stream) {
  launch("bn_stats_merge", bn_stats_over_processes_kernel, {ceil_divide(channels, kMergeWide)}, kMergeThreads,
         merge_bytes<Moments<1>>(kMergeThreads), stream, world, channels, parts, static_cast<float>(count),
         static_cast<float>(eps), mean, invstd, var, share);
}

}  // namespace resnet_fused::cuda
