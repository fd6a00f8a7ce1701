// Divides the passes over an activation into tasks.
#pragma once

#include <algorithm>

#include "cpu/base/norm.h"
#include "cpu/base/parallel.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Values per task of a pass that writes a map. A task is small enough that the smallest maps of ResNet-34 at batch 1
// (25088 values) use two cores. It is large enough that waking a thread costs less than the task's work.
constexpr int64_t kGrain = 8192;
// Contiguous layout: values of one channel that are handled at a time. They stay in the L1 cache.
constexpr int64_t kSegment = 2048;

// Calls body(constants, offset, n) for every run of n neighbouring values. fill(strip, first_channel, n) computes the
// constants. channels_last: a run is a strip of channels of one pixel. contiguous: a run is a piece of one channel's
// plane.
template <int kCount, class Fill, class Body>
void for_each_run(Layout layout, const Fill& fill, const Body& body) {
  const int64_t channels = layout.channels;
  if (layout.inner == 1) {
    parallel_for(layout.outer, ceil_div(kGrain, channels), [&](int64_t begin, int64_t end) {
      Strip<kCount> strip;
      for (int64_t first = 0; first < channels; first += kStrip) {
        const int n = static_cast<int>(std::min<int64_t>(kStrip, channels - first));
        fill(strip, first, n);
        for (int64_t row = begin; row < end; ++row) body(strip, row * channels + first, n);
      }
    });
    return;
  }
  const int64_t segments = ceil_div(layout.inner, kSegment);
  const int64_t grain = ceil_div(kGrain, std::min(layout.inner, kSegment));
  parallel_for(layout.outer * channels * segments, grain, [&](int64_t begin, int64_t end) {
    Strip<kCount> strip;
    int64_t first = 0, filled = 0;  // the channels that the strip holds
    for (int64_t run = begin; run < end; ++run) {
      const int64_t plane = run / segments, channel = plane % channels, from = run % segments * kSegment;
      if (channel < first || channel >= first + filled) {
        first = channel;
        filled = std::min(std::min<int64_t>(kStrip, channels - first), ceil_div(end, segments) - plane);
        fill(strip, first, static_cast<int>(filled));
      }
      body(Uniform<kCount>(strip, channel - first), plane * layout.inner + from,
           std::min(kSegment, layout.inner - from));
    }
  });
}

// Divides the values of one channel, in memory order, into units, and the units into chunks of equal length. A unit is
// one row (channels_last) or at most kSegment neighbours (contiguous). Chunks depend only on the shape, so sums over
// them are the same for every number of threads.
struct Partition {
  int64_t channels, inner, segments, units, chunks, units_per_chunk;

  explicit Partition(Layout layout)
      : channels(layout.channels),
        inner(layout.inner),
        segments(ceil_div(layout.inner, kSegment)),
        units(layout.outer * segments) {
    constexpr int64_t kChunk = 65536, kMaxChunks = 128;  // kMaxChunks limits the scratch and the final merge
    const int64_t wanted = std::min(std::min(ceil_div(layout.size(), kChunk), kMaxChunks), units);
    units_per_chunk = ceil_div(units, wanted);
    chunks = ceil_div(units, units_per_chunk);
  }
  int64_t begin(int64_t chunk) const { return std::min(chunk * units_per_chunk, units); }
  int64_t end(int64_t chunk) const { return begin(chunk + 1); }
  // Values of one channel in a chunk.
  int64_t values(int64_t chunk) const { return values_before(end(chunk)) - values_before(begin(chunk)); }

  // The position of a unit of channel c, and its length (contiguous layout).
  int64_t offset(int64_t unit, int64_t c) const {
    return (unit / segments * channels + c) * inner + unit % segments * kSegment;
  }
  int64_t length(int64_t unit) const { return std::min(kSegment, inner - unit % segments * kSegment); }

 private:
  int64_t values_before(int64_t unit) const { return unit / segments * inner + unit % segments * kSegment; }
};

// Calls strip_task(chunk, first_channel, n) for every chunk and strip of channels (channels_last), or
// channel_task(chunk, channel) (contiguous).
template <class StripTask, class ChannelTask>
void for_each_chunk(const Partition& partition, const StripTask& strip_task, const ChannelTask& channel_task) {
  const int64_t channels = partition.channels;
  if (partition.inner == 1) {
    const int64_t strips = ceil_div(channels, kStrip);
    parallel_for(partition.chunks * strips, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        const int64_t first = task % strips * kStrip;
        strip_task(task / strips, first, static_cast<int>(std::min<int64_t>(kStrip, channels - first)));
      }
    });
    return;
  }
  const int64_t grain = ceil_div(kGrain, partition.values(0));
  parallel_for(partition.chunks * channels, grain, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) channel_task(task / channels, task % channels);
  });
}

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
