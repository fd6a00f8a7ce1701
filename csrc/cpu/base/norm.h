// Constants of a strip of channels: read from any dtype, combined in double, used as floats.
#pragma once

#include <cmath>
#include <cstring>

#include "cpu/base/vec.h"
#include "ops.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {

// Channels that a task handles at a time: their constants and sums stay in the L1 cache and need no heap.
constexpr int kStrip = 512;

template <class Body>
inline void dispatch(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::f32:
      return body(float{});
    case DType::f16:
      return body(f16{});
    case DType::bf16:
      return body(bf16{});
  }
}

// out[i] = channels[first + i], or `absent` where `channels` has no data.
inline void gather(Channels channels, int64_t first, int n, float absent, float* out) {
  if (!channels.data) {
    for (int i = 0; i < n; ++i) out[i] = absent;
    return;
  }
  dispatch(channels.dtype, [&](auto type) {
    const auto* from = static_cast<const decltype(type)*>(channels.data) + first;
    int i = 0;
    for (; i + kWidth <= n; i += kWidth) store(out + i, load(from + i));
    if (i < n) store(out + i, load(from + i, n - i), n - i);
  });
}

inline void set(MutableChannels channels, int64_t c, float value) {
  dispatch(channels.dtype, [&](auto type) { store(static_cast<decltype(type)*>(channels.data) + c, splat(value), 1); });
}

inline float get(MutableChannels channels, int64_t c) {
  float value;
  gather({channels.data, channels.dtype}, c, 1, 0, &value);
  return value;
}

// kCount constants per channel, read as vectors: strip(which, i) holds channels i, i + 1, ... of the strip.
template <int kCount>
struct Strip {
  alignas(64) float values[kCount][kStrip];
  Vec operator()(int which, int64_t i) const { return load(values[which] + i); }
};

// The constants of one channel. i does not matter.
template <int kCount>
struct Uniform {
  Vec values[kCount];
  explicit Uniform(const Strip<kCount>& strip) {
    for (int which = 0; which < kCount; ++which) values[which] = splat(strip.values[which][0]);
  }
  Vec operator()(int which, int64_t) const { return values[which]; }
};

inline void gather_mean(const Norm& norm, int64_t first, int n, float* out) { gather(norm.mean, first, n, 0, out); }

inline void gather_invstd(const Norm& norm, int64_t first, int n, float* out) {
  gather(norm.spread, first, n, 1, out);
  if (!norm.has_var) return;
  for (int i = 0; i < n; ++i) out[i] = static_cast<float>(1 / std::sqrt(static_cast<double>(out[i]) + norm.eps));
}

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
