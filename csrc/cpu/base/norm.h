// Constants of a strip of channels: read from any dtype, combined in double, used as floats.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

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

// The constants of one channel of a strip. i does not matter.
template <int kCount>
struct Uniform {
  Vec values[kCount];
  Uniform(const Strip<kCount>& strip, int64_t channel) {
    for (int which = 0; which < kCount; ++which) values[which] = splat(strip.values[which][channel]);
  }
  Vec operator()(int which, int64_t) const { return values[which]; }
};

inline void gather_mean(const Norm& norm, int64_t first, int n, float* out) { gather(norm.mean, first, n, 0, out); }

inline void gather_invstd(const Norm& norm, int64_t first, int n, float* out) {
  gather(norm.var_or_invstd, first, n, 1, out);
  if (!norm.has_var) return;
  for (int i = 0; i < n; ++i) out[i] = static_cast<float>(1 / std::sqrt(static_cast<double>(out[i]) + norm.eps));
}

// Mean, scale = weight * invstd, and bias of the channels [first, first + n), for a pass over values of type T.
//
// A norm as it is born has the scale 1 / sqrt(1 + 1e-5), a hair below 1. In a 16-bit type x * scale + residual then
// lies a hair beside the middle between two values very often, and rounds always to the same side: a bias, which adds
// up over the layers of a network. Eager has none, because it rounds x * scale to x before it adds. Such a scale of
// running statistics is therefore rounded here. (Rounding each x * scale would make the pass 1.4 to 1.7 times as slow:
// Zen 4, 2026-11-30.)
template <class T>
inline void gather_norm(const Norm& norm, int64_t first, int n, float* mean, float* scale, float* bias) {
  float invstd[kStrip];
  gather_invstd(norm, first, n, invstd);
  gather_mean(norm, first, n, mean);
  gather(norm.weight, first, n, 1, scale);
  gather(norm.bias, first, n, 0, bias);
  for (int i = 0; i < n; ++i) scale[i] *= invstd[i];
  if (sizeof(T) == sizeof(float) || !norm.has_var) return;
  constexpr uint32_t kDropped = std::is_same_v<T, bf16> ? 16 : 13, kUnit = 1u << kDropped;  // bits of a float
  constexpr float kNear = 1.0f / (1 << (30 - kDropped));                                    // 2^-14, 2^-17
  for (int i = 0; i < n; ++i) {
    const float rounded = bit_cast<float>((bit_cast<uint32_t>(scale[i]) + kUnit / 2) & ~(kUnit - 1));
    const bool born = (mean[i] == 0) & (bias[i] == 0) & (std::fabs(rounded - scale[i]) <= kNear * std::fabs(rounded));
    scale[i] = born ? rounded : scale[i];
  }
}

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
