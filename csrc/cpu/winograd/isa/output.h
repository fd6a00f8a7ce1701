// The output transform. A lane is a channel. This file is compiled once per instruction set (vec.h).
#pragma once

#include "cpu/base/vec_more.h"
#include "cpu/winograd/isa/kernels.h"
#include "cpu/winograd/points.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {

// A^T m along one axis: y_i = sum over the points p of p^i m_p; infinity contributes to the last y alone. It is
// computed in two parts that share their common terms: y0 and y2 need the sums over +-p, y1 and y3 the differences. m:
// the values of the points that M outputs have.
template <int M>
struct OutputAxis {
  static constexpr double a = kPointA, b = kPointB;
  static Vec scaled(double factor, Vec v) { return splat(float(factor)) * v; }
  static void even(const Vec (&m)[M + 2], Vec& y0, Vec& y2) {
    if constexpr (M == 4) {
      const Vec sum_a = m[1] + m[2], sum_b = m[3] + m[4];
      y0 = m[0] + sum_a + sum_b;
      y2 = fma(splat(float(b * b)), sum_b, scaled(a * a, sum_a));
    } else {
      const Vec sum_b = m[2] + m[3];
      y0 = m[0] + m[1] + sum_b;
      y2 = fma(splat(float(b * b)), sum_b, fma(splat(float(a * a)), m[1], m[4]));
    }
  }
  static void odd(const Vec (&m)[M + 2], Vec& y1, Vec& y3) {
    if constexpr (M == 4) {
      const Vec difference_a = m[1] - m[2], difference_b = m[3] - m[4];
      y1 = fma(splat(float(b)), difference_b, scaled(a, difference_a));
      y3 = fma(splat(float(b * b * b)), difference_b, fma(splat(float(a * a * a)), difference_a, m[5]));
    } else {
      y1 = fma(splat(float(b)), m[2] - m[3], scaled(-a, m[1]));
    }
  }
  static void all(const Vec (&m)[M + 2], Vec (&y)[M]) {
    if constexpr (M == 2) {
      y[0] = m[0] + m[1] + m[2];
      y[1] = m[1] - m[2] + m[3];
    } else {
      even(m, y[0], y[2]);
      odd(m, y[1], y[M - 1]);
    }
  }
};

// Values that all pixels of a vector of channels share. low: the least value that is written, which is 0 for ReLU and
// -infinity for no activation; one instruction serves both. An activation that is not such a limit needs another
// kernel, and register/cpu/winograd.cpp refuses it. bad: 0, or NaN in every lane that met a value that was not finite.
struct OutputLanes {
  Vec scale, shift, low, bad;
};

// Writes one vector of channels of one tile, from row i of A^T m on. kWhole: all H x W pixels and all lanes exist.
template <int W, class T, bool kWhole, bool kResidual>
inline void output_row(const Vec (&m)[W + 2], const WinogradOutput& to, int i, int64_t lane, int64_t lanes,
                       OutputLanes& with) {
  if (!kWhole && i >= to.height) return;
  const int width = kWhole ? W : to.width;
  Vec y[W];
  OutputAxis<W>::all(m, y);
#pragma GCC unroll 4
  for (int j = 0; j < W; ++j) {
    if (j >= width) break;
    const int64_t offset = i * to.row_stride + j * to.pixel_stride + lane;
    Vec value = fma(y[j], with.scale, with.shift);
    if constexpr (kResidual) {
      const T* residual = static_cast<const T*>(to.residual) + offset;
      value += kWhole ? load(residual) : load_lanes(residual, lanes);
    }
    with.bad += value - value;
    value = at_least(with.low, value);
    if constexpr (kWhole) {
      store(static_cast<T*>(to.out) + offset, value);
    } else {
      store_lanes(static_cast<T*>(to.out) + offset, value, lanes);
    }
  }
}

template <int H, int W, class T, bool kWhole, bool kResidual>
[[gnu::noinline]] bool output_vector(const float* products, const WinogradOutput& to, int64_t lane, int64_t lanes) {
  using Axis = OutputAxis<H>;
  constexpr int kWide = W + 2;
  const auto channels = [&](const float* p) { return kWhole ? load(p + lane) : load_lanes(p + lane, lanes); };
  OutputLanes with{to.scale ? channels(to.scale) : splat(1.0f), channels(to.shift),
                   splat(to.activation == Pointwise::relu ? 0.0f : -__builtin_inff()), Vec{}};
  const auto column = [&](int j, Vec(&m)[H + 2]) {
#pragma GCC unroll 6
    for (int i = 0; i < H + 2; ++i) {
      m[i] = load(products + (kPlaces<H>[i] * kPointsOf<W> + kPlaces<W>[j]) * kWinogradPanel + lane);
    }
  };
  const auto finish = [&](const Vec(&m)[kWide], int i) {
    output_row<W, T, kWhole, kResidual>(m, to, i, lane, lanes, with);
  };
  Vec first[kWide], second[kWide];
  // Two passes need 60 loads instead of 36. They have 12 intermediate values instead of 24, and 24 would be spilled.
#pragma GCC unroll 6
  for (int j = 0; j < kWide; ++j) {
    Vec m[H + 2];
    column(j, m);
    if constexpr (H == 2) {
      Vec y[2];
      Axis::all(m, y);
      first[j] = y[0];
      second[j] = y[1];
    } else {
      Axis::even(m, first[j], second[j]);
    }
  }
  finish(first, 0);
  finish(second, H == 2 ? 1 : 2);
  if constexpr (H > 2) {
#pragma GCC unroll 6
    for (int j = 0; j < kWide; ++j) {
      Vec m[H + 2];
      column(j, m);
      Axis::odd(m, first[j], second[j]);
    }
    finish(first, 1);
    if constexpr (H == 4) finish(second, 3);
  }
  return all_zero(with.bad);
}

template <int H, int W, class T>
bool winograd_output(const float* products, const WinogradOutput& to) {
  bool finite = true;
  for (int64_t lane = 0; lane < to.channels; lane += kWidth) {
    const int64_t lanes = to.channels - lane < kWidth ? to.channels - lane : kWidth;
    const bool whole = to.height == H && to.width == W && lanes == kWidth;
    if (to.residual) {
      finite &=
          (whole ? output_vector<H, W, T, true, true> : output_vector<H, W, T, false, true>)(products, to, lane, lanes);
    } else {
      finite &= (whole ? output_vector<H, W, T, true, false> : output_vector<H, W, T, false, false>)(products, to, lane,
                                                                                                     lanes);
    }
  }
  return finite;
}

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
