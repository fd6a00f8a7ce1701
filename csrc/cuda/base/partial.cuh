// Partial results of one channel, or of the N channels of a thread, and the merge of these partial results across a
// block in a fixed order.
#pragma once

#include "cuda/base/launch.h"
#include "cuda/base/walk.cuh"

namespace resnet_fused::cuda {

// Count, mean and sum of squared deviations (M2). All channels of a thread have the same count.
template <int kChannels>
struct Moments {
  static constexpr int kWords = 1 + 2 * kChannels;
  float count = 0, mean[kChannels] = {}, m2[kChannels] = {};

  // Chan's update: it does not cancel, however large the mean is.
  __device__ __forceinline__ void merge(const Moments& other) {
    const float total = ptx::add(count, other.count);
    const float part = total > 0.0f ? ptx::div(other.count, total) : 0.0f;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      const float delta = ptx::add(other.mean[c], -mean[c]);
      mean[c] = ptx::fma(delta, part, mean[c]);
      m2[c] = ptx::add(ptx::fma(ptx::mul(delta, delta), ptx::mul(count, part), m2[c]), other.m2[c]);
    }
    count = total;
  }
};

// Sums of g and of g * xhat.
template <int kChannels>
struct GradientSums {
  static constexpr int kWords = 2 * kChannels;
  float g[kChannels] = {}, gx[kChannels] = {};

  __device__ __forceinline__ void merge(const GradientSums& other) {
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      g[c] = ptx::add(g[c], other.g[c]);
      gx[c] = ptx::add(gx[c], other.gx[c]);
    }
  }
};

template <class Partial>
struct Words {
  float w[Partial::kWords];
};

// Shared memory is [kWords, threads]: the accesses of a warp then fall into 32 different banks.
template <class Partial>
constexpr size_t merge_bytes(int threads) {
  return sizeof(float) * Partial::kWords * threads;
}

// Some kernels first keep one constant per channel in the same memory. They ask for merge_bytes alone.
static_assert(merge_bytes<GradientSums<1>>(kWalkThreads) >= constants_bytes(1), "room for the constants");

// Merges the partial results of the threads `along` = 0 .. high - 1 into `along` = 0. Partners merge in pairs at
// distances 2^k, descending. Every thread of the block must call it; `active` says whether the thread has a partial
// result.
template <class Partial>
__device__ __forceinline__ void merge_block(Partial& mine, int across, int along, int wide, int high, bool active) {
  const int threads = ptx::threads(), slot = along * wide + across;
  int distance = 1;
  while (distance < high) distance *= 2;
  for (distance /= 2; distance > 0; distance /= 2) {
    // Threads write the slots distance .. 2 * distance - 1 here, and only their partners read these slots. The next
    // round uses lower slots, so one barrier per round is enough.
    if (active && along >= distance && along < 2 * distance) {
      const auto words = ptx::bit_cast<Words<Partial>>(mine);
#pragma unroll
      for (int i = 0; i < Partial::kWords; ++i) ptx::st_shared(ptx::smem_base() + 4 * (i * threads + slot), words.w[i]);
    }
    ptx::sync_threads();
    if (active && along < distance && along + distance < high) {
      Words<Partial> words;
#pragma unroll
      for (int i = 0; i < Partial::kWords; ++i) {
        words.w[i] = ptx::ld_shared<float>(ptx::smem_base() + 4 * (i * threads + slot + distance * wide));
      }
      mine.merge(ptx::bit_cast<Partial>(words));
    }
  }
}

// A thread reduces at least 16 positions before its block adds a partial result to scratch, which is at most 5 % of the
// traffic (computed). Four blocks of 256 threads per multiprocessor are as many as their registers allow.
inline Share reduction_share(const Layout& layout, int n, int multiprocessors) {
  return share(layout, n, 16, static_cast<int64_t>(multiprocessors) * 4);
}

// Bytes of scratch that suffice for every vector width. The pointers decide the width and are not known yet.
inline size_t reduction_scratch(const Layout& layout, const char* op, int words) {
  const int bytes = layout.dtype == DType::f32 ? 4 : 2, processors = multiprocessors(op);
  const int64_t row = layout.inner == 1 ? layout.channels : layout.inner;
  int64_t chunks = 1;
  for (const int n : {1, 8 / bytes, 16 / bytes}) {
    if (row % n != 0) continue;
    const int64_t c = reduction_share(layout, n, processors).chunks;
    chunks = c > chunks ? c : chunks;
  }
  return static_cast<size_t>(chunks * words * layout.channels) * sizeof(float);
}

// Second stage: one column of threads per channel. kMergeHigh threads share the chunks of a channel.
constexpr int kMergeWide = 32, kMergeHigh = 16, kMergeThreads = kMergeWide * kMergeHigh;

// Scratch is [chunks, words of one channel, channels].
template <class Partial>
__device__ __forceinline__ Partial merge_chunks(const float* scratch, int64_t chunks, int64_t channels, int64_t channel,
                                                int along) {
  Partial total;
  for (int64_t chunk = along; chunk < chunks; chunk += kMergeHigh) {
    Words<Partial> words;
#pragma unroll
    for (int i = 0; i < Partial::kWords; ++i) {
      words.w[i] = ptx::ld_global_nc<float>(scratch + (chunk * Partial::kWords + i) * channels + channel);
    }
    total.merge(ptx::bit_cast<Partial>(words));
  }
  return total;
}

}  // namespace resnet_fused::cuda
