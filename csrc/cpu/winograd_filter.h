// The filter transform G g G^T in float32, for weights that are kept as taps. Compiled once per instruction set.
#pragma once

#include "winograd_kernels.h"
#include "winograd_points.h"
#include "winograd_vec.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {

// Along one axis: (1, p, p^2) / norm for each point p; 0 and infinity are the outer taps themselves.
inline void filter_axis(Vec g0, Vec g1, Vec g2, Vec (&u)[4]) {
  const Vec even = fma(splat(0.5f), g2, splat(0.5f) * g0);
  u[0] = g0;
  u[1] = fma(splat(0.5f), g1, even);
  u[2] = fma(splat(-0.5f), g1, even);
  u[3] = g2;
}

inline void filter_axis(Vec g0, Vec g1, Vec g2, Vec (&u)[6]) {
  const auto pair = [&](double point, double norm, Vec& plus, Vec& minus) {
    const Vec even = fma(splat(float(point * point / norm)), g2, splat(float(1 / norm)) * g0);
    plus = fma(splat(float(point / norm)), g1, even);
    minus = fma(splat(float(-point / norm)), g1, even);
  };
  u[0] = g0;
  pair(kPointA, kNormA, u[1], u[2]);
  pair(kPointB, kNormB, u[3], u[4]);
  u[5] = g2;
}

template <int M>
void winograd_expand(const float* taps, int64_t c, float* u, int64_t point_stride) {
  constexpr int kSize = M + 2;
  for (int64_t i = 0; i < c; ++i, taps += 9 * kWinogradPanel, u += kWinogradPanel) {
    for (int lane = 0; lane < kWinogradPanel; lane += kWidth) {
      const auto tap = [&](int r, int s) { return load(taps + (r * 3 + s) * kWinogradPanel + lane); };
      Vec column[3][kSize];
#pragma GCC unroll 3
      for (int s = 0; s < 3; ++s) filter_axis(tap(0, s), tap(1, s), tap(2, s), column[s]);
#pragma GCC unroll 6
      for (int y = 0; y < kSize; ++y) {
        Vec row[kSize];
        filter_axis(column[0][y], column[1][y], column[2][y], row);
#pragma GCC unroll 6
        for (int x = 0; x < kSize; ++x) store(u + (y * kSize + x) * point_stride + lane, row[x]);
      }
    }
  }
}

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
