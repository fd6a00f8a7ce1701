// Batch mean and 1 / sqrt(var + eps) per channel in one pass over x. It also updates the running statistics.
#pragma once

#include "cuda/base/partial.cuh"

namespace resnet_fused::cuda {

// The pivot: the average of the first few values of a channel, the same for every thread. A single value is typically
// one deviation from the mean, and the rounding error of the means is proportional to that distance.
template <class T>
__device__ __forceinline__ float pivot_of(const T* x, int64_t outer, int64_t channels, int64_t inner, int64_t channel) {
  const int64_t available = inner == 1 ? outer : inner, step = inner == 1 ? channels : 1;
  const int count = available < 8 ? static_cast<int>(available) : 8;
  float sum = 0;
  for (int i = 0; i < count; ++i) sum = ptx::add(sum, parameter<T>(x, channel * inner + i * step));
  return ptx::div(sum, static_cast<float>(count));
}

// First stage: each block reduces its chunk to (count, mean, M2) per channel in scratch.
//
// Values are taken relative to a pivot near the mean. Where |mean| is 1000 deviations, a float32 mean is wrong by 3e-5
// deviations, and so is the difference of two such means. Groups of rows are reduced in registers around their own mean
// and merged by Chan's update, which costs one division per group. The pivot may be an outlier, far from the mean,
// where shifted sums of squares would cancel.
template <class T, int N, bool kPlanes>
__global__ void __launch_bounds__(kWalkThreads) bn_stats_kernel(Share share, const T* x, float* scratch) {
  using W = Walk<N, kPlanes>;
  constexpr int kUnroll = 4, kEach = N / W::kChannels;  // kEach: values of a channel in one vector
  W walk(share);
  float constants[1][W::kChannels];
  channel_constants(share, walk, constants, [&](int64_t c) {
    return Constants<1>{{pivot_of(x, share.outer, share.channels, share.inner, c)}};
  });
  const auto& [pivot] = constants;
  Moments<W::kChannels> total;
  while (walk.more()) {
    Elements<T, N> in[kUnroll];
    bool live[kUnroll];
    int rows = 0;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      live[u] = walk.more();
      if (live[u]) in[u] = ptx::ld_global_nc<Elements<T, N>>(x + walk.offset);
      rows += live[u];
      walk.next();
    }
    Moments<W::kChannels> group;
    group.count = static_cast<float>(rows * kEach);
    const float share_of_one = ptx::div(1.0f, group.count);
#pragma unroll
    for (int c = 0; c < W::kChannels; ++c) {
      float sum = 0;
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
        for (int e = c; e < N; e += W::kChannels) {
          const float d = ptx::add(ptx::to_float(in[u].v[e]), -pivot[c]);
          sum = live[u] ? ptx::add(sum, d) : sum;
        }
      }
      const float mean = ptx::mul(sum, share_of_one);
      float m2 = 0;
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
        for (int e = c; e < N; e += W::kChannels) {
          const float d = ptx::add(ptx::add(ptx::to_float(in[u].v[e]), -pivot[c]), -mean);
          m2 = live[u] ? ptx::fma(d, d, m2) : m2;
        }
      }
      group.mean[c] = mean;
      group.m2[c] = m2;
    }
    total.merge(group);
  }
  ptx::sync_threads();  // the merge uses the shared memory of the constants
  merge_block(total, walk.across, walk.along, share.wide, share.high, walk.active);
  if (walk.active && walk.along == 0) {
    float* to = scratch + static_cast<int64_t>(ptx::bid_y()) * 3 * share.channels + walk.channel;
#pragma unroll
    for (int c = 0; c < W::kChannels; ++c) {
      ptx::st_global(to + c, total.count);
      ptx::st_global(to + share.channels + c, total.mean[c]);
      ptx::st_global(to + 2 * share.channels + c, total.m2[c]);
    }
  }
}

struct BatchStatistics {
  float* mean;
  float* invstd;
  MutableChannels running_mean, running_var;
  const int64_t* num_batches_tracked;  // read on the device: a captured graph must use the value of its replay
  float momentum, eps;
};

__device__ __forceinline__ void finish_statistics(const BatchStatistics& to, const Moments<1>& total, float pivot,
                                                  int64_t count, int64_t c) {
  const float n = static_cast<float>(count), mean = ptx::add(pivot, total.mean[0]);
  const float variance = ptx::div(total.m2[0], n);
  ptx::st_global(to.mean + c, mean);
  ptx::st_global(to.invstd + c, ptx::div(1.0f, ptx::sqrt(ptx::add(variance, to.eps))));
  float factor = to.momentum;
  if (to.num_batches_tracked != nullptr) {
    const auto batches = ptx::bit_cast<int64_t>(ptx::ld_global_nc<ptx::Words2>(to.num_batches_tracked));
    factor = ptx::div(1.0f, static_cast<float>(batches));
  }
  const float kept = ptx::add(1.0f, -factor);
  if (to.running_mean.data != nullptr) {
    const float old = parameter({to.running_mean.data, to.running_mean.dtype}, c, 0.0f);
    set_parameter(to.running_mean, c, ptx::fma(factor, mean, ptx::mul(kept, old)));
  }
  if (to.running_var.data != nullptr) {
    const float old = parameter({to.running_var.data, to.running_var.dtype}, c, 0.0f);
    // of one value the variance is NaN, as in torch
    const float unbiased = ptx::div(total.m2[0], static_cast<float>(count - 1));
    set_parameter(to.running_var, c, ptx::fma(factor, unbiased, ptx::mul(kept, old)));
  }
}

// Second stage: merges the chunks in order and computes the statistics.
template <class T>
__global__ void __launch_bounds__(kMergeThreads)
    bn_stats_merge_kernel(Share share, const T* x, const float* scratch, int64_t count, BatchStatistics to) {
  const int across = ptx::tid() % kMergeWide, along = ptx::tid() / kMergeWide;
  const int64_t c = static_cast<int64_t>(ptx::bid_x()) * kMergeWide + across;
  const bool active = c < share.channels;
  Moments<1> total;
  if (active) total = merge_chunks<Moments<1>>(scratch, share.chunks, share.channels, c, along);
  merge_block(total, across, along, kMergeWide, kMergeHigh, active);
  if (active && along == 0) {
    finish_statistics(to, total, pivot_of(x, share.outer, share.channels, share.inner, c), count, c);
  }
}

}  // namespace resnet_fused::cuda
