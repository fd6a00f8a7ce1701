// The filter transform G g G^T in float32, for weights that are kept as taps. This file is compiled once per
// instruction set.
#pragma once

#include "cpu/base/vec_more.h"
#include "cpu/winograd/isa/kernels.h"
#include "cpu/winograd/points.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {

// The transform along one axis: (1, p, p^2) / norm for each point p. Points 0 and infinity are the outer taps
// themselves.
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

// Interleaves rows[i] and rows[i + kWidth / 2] into rows 2 i and 2 i + 1. log2(kWidth) such steps transpose kWidth
// rows.
inline void interleave_rows(Vec (&rows)[kWidth]) {
  BitVec low, high;
  for (int i = 0; i < kWidth; ++i) {
    low[i] = i / 2 + i % 2 * kWidth;
    high[i] = low[i] + kWidth / 2;
  }
  Vec result[kWidth];
#pragma GCC unroll 8
  for (int i = 0; i < kWidth / 2; ++i) {
    result[2 * i] = shuffle(rows[i], rows[i + kWidth / 2], low);
    result[2 * i + 1] = shuffle(rows[i], rows[i + kWidth / 2], high);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) rows[i] = result[i];
}

// to[j * to_stride + lane] = from[lane * from_stride + j] for all lanes below `lanes` and all j below `count`.
inline void transpose(const float* from, int64_t from_stride, int64_t lanes, int64_t count, float* to,
                      int64_t to_stride) {
  const int64_t whole_lanes = lanes / kWidth * kWidth, whole = count / kWidth * kWidth;
  for (int64_t lane = 0; lane < whole_lanes; lane += kWidth) {
    for (int64_t j = 0; j < whole; j += kWidth) {
      Vec rows[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) rows[i] = load(from + (lane + i) * from_stride + j);
#pragma GCC unroll 4
      for (int step = 1; step < kWidth; step *= 2) interleave_rows(rows);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) store(to + (j + i) * to_stride + lane, rows[i]);
    }
  }
  for (int64_t j = 0; j < count; ++j) {
    for (int64_t lane = j < whole ? whole_lanes : 0; lane < lanes; ++lane) {
      to[j * to_stride + lane] = from[lane * from_stride + j];
    }
  }
}

// A transposition serves both layouts of a weight. Weights with exchanged channels (the gradient of an input) need none
// where outputs are neighbours. Scalar copies took 0.55 ns a value, at 256 channels 0.5 times as
// long as the products of 49 tiles (measured: one thread of an Intel Xeon with AVX-512, 2026-11-24).
inline void winograd_gather(const WinogradFilters& from, int64_t filters, int64_t channels, float* taps) {
  if (filters == kWinogradPanel && from.tap_stride == 1 && from.c_stride == 9) {
    transpose(from.data, from.k_stride, kWinogradPanel, channels * 9, taps, kWinogradPanel);
  } else if (filters == kWinogradPanel && from.c_stride == 1) {
    for (int tap = 0; tap < 9; ++tap) {
      transpose(from.data + tap * from.tap_stride, from.k_stride, kWinogradPanel, channels, taps + tap * kWinogradPanel,
                9 * kWinogradPanel);
    }
  } else if (filters == kWinogradPanel && from.k_stride == 1) {
    for (int64_t c = 0; c < channels; ++c) {
      for (int tap = 0; tap < 9; ++tap, taps += kWinogradPanel) {
        const float* row = from.data + c * from.c_stride + tap * from.tap_stride;
        for (int lane = 0; lane < kWinogradPanel; lane += kWidth) store(taps + lane, load(row + lane));
      }
    }
  } else {
    for (int64_t c = 0; c < channels; ++c) {
      for (int tap = 0; tap < 9; ++tap, taps += kWinogradPanel) {
        const float* row = from.data + c * from.c_stride + tap * from.tap_stride;
        for (int64_t lane = 0; lane < filters; ++lane) taps[lane] = row[lane * from.k_stride];
        for (int64_t lane = filters; lane < kWinogradPanel; ++lane) taps[lane] = 0;
      }
    }
  }
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
