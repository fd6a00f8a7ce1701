// The functions of pointwise.h on vectors. A NaN stays a NaN.
#pragma once

#include "cpu/base/pointwise.h"
#include "cpu/base/vec_more.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {

inline Vec clamp(Vec v, float low, float high) {
  v = v < low ? splat(low) : v;
  return v > high ? splat(high) : v;
}

// e^v with a relative error below 2e-7. Above 88.4 the result is an infinity, below -87.3 it is e^-87.3.
inline Vec exp(Vec v) {
  v = clamp(v, -87.3f, 89.0f);
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: the sum with it is rounded to an integer
  const Vec shifted = fma(v, splat(1.44269504f), splat(kMagic));
  const Vec n = shifted - kMagic;
  const Vec r = fma(n, splat(-1.42860677e-6f), fma(n, splat(-0.693145752f), v));  // ln 2 in two parts
  Vec p = splat(1.98756915e-4f);
  for (const float next : {1.39819995e-3f, 8.33345196e-3f, 4.16657962e-2f, 1.66666657e-1f, 0.5f})
    p = fma(p, r, splat(next));
  p = fma(p, r * r, r + 1.0f);
  // 2^n: the low bits of the sum hold n.
  const IntVec power = (bit_cast<IntVec>(shifted) - 0x4b400000 + 127) << 23;
  return v == v ? p * bit_cast<Vec>(power) : v;
}

inline Vec pointwise(Vec v, Pointwise function) {
  switch (function) {
    case Pointwise::relu:
      return v < 0 ? Vec{} : v;
    case Pointwise::relu6:
      return clamp(v, 0.0f, 6.0f);
    case Pointwise::hardswish:
      return v * clamp(v + 3.0f, 0.0f, 6.0f) * (1.0f / 6.0f);
    case Pointwise::silu:
      return v / (exp(-v) + 1.0f);
    case Pointwise::sigmoid:
      return 1.0f / (exp(-v) + 1.0f);
    case Pointwise::hardsigmoid:
      return clamp(v + 3.0f, 0.0f, 6.0f) * (1.0f / 6.0f);
    default:
      return v;
  }
}

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
