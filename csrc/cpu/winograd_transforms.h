// The input and output transforms; a lane is a channel. Compiled once per instruction set (vec.h).
#pragma once

#include "dot.h"
#include "winograd_kernels.h"
#include "winograd_points.h"
#include "winograd_vec.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {

// Along one axis: the m + 2 points of B^T d, as four parts that share their common terms.
//   F(4, 3): d0 - (a^2 + b^2) d2 + d4 | (d4 - b^2 d2) +- a (d3 - b^2 d1) | (d4 - a^2 d2) +- b (d3 - a^2 d1) | d1 .. d5
//   (with a * b = 1); F(2, 3): d0 - d2 | d2 +- d1 | d3 - d1
template <int M>
struct InputAxis;

template <>
struct InputAxis<4> {
  static_assert(kPointA * kPointB > 1 - 1e-15 && kPointA * kPointB < 1 + 1e-15, "the end rows assume a * b = 1");
  static constexpr float kA = float(kPointA), kB = float(kPointB);
  static constexpr float kA2 = float(kPointA * kPointA), kB2 = float(kPointB * kPointB), kSum = kA2 + kB2;

  static Vec end(Vec outer, Vec middle, Vec inner) { return fma(splat(-kSum), middle, outer + inner); }
  static void pair(float point, float other2, Vec d1, Vec d2, Vec d3, Vec d4, Vec& plus, Vec& minus) {
    const Vec even = fma(splat(-other2), d2, d4), odd = fma(splat(-other2), d1, d3);
    plus = fma(splat(point), odd, even);
    minus = fma(splat(-point), odd, even);
  }
  static void all(const Vec (&d)[6], Vec (&r)[6]) {
    r[0] = end(d[0], d[2], d[4]);
    pair(kA, kB2, d[1], d[2], d[3], d[4], r[1], r[2]);
    pair(kB, kA2, d[1], d[2], d[3], d[4], r[3], r[4]);
    r[5] = end(d[1], d[3], d[5]);
  }
};

template <>
struct InputAxis<2> {
  static void all(const Vec (&d)[4], Vec (&r)[4]) {
    r[0] = d[0] - d[2];
    r[1] = d[2] + d[1];
    r[2] = d[2] - d[1];
    r[3] = d[3] - d[1];
  }
};

template <int M, class T>
inline void store_points(const Vec (&d)[M + 2], T* v, int64_t point_stride) {
  Vec r[M + 2];
  InputAxis<M>::all(d, r);
  for (int j = 0; j < M + 2; ++j) store_operand(v + j * point_stride, r[j]);
}

// One vector of channels of one tile. F(4, 3) makes its rows as 0 | 1, 2 | 3, 4 | 5 and loads the pixels again for each
// part: 84 loads, but no 36 intermediate values to spill.
template <int M, class From, class T>
[[gnu::noinline]] void input_vector(const From* d, int64_t row, int64_t col, T* v, int64_t point_stride) {
  if constexpr (M == 2) {
    Vec t[4][4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const Vec column[4] = {load(d + j * col), load(d + row + j * col), load(d + 2 * row + j * col),
                             load(d + 3 * row + j * col)};
      Vec r[4];
      InputAxis<2>::all(column, r);
      for (int i = 0; i < 4; ++i) t[i][j] = r[i];
    }
    for (int i = 0; i < 4; ++i) store_points<2>(t[i], v + i * 4 * point_stride, point_stride);
  } else {
    using Axis = InputAxis<4>;
    Vec plus[6], minus[6];
    const auto at = [&](int i, int j) { return load(d + i * row + j * col); };
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) plus[j] = Axis::end(at(0, j), at(2, j), at(4, j));
    store_points<4>(plus, v, point_stride);
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) {
      Axis::pair(Axis::kA, Axis::kB2, at(1, j), at(2, j), at(3, j), at(4, j), plus[j], minus[j]);
    }
    store_points<4>(plus, v + 6 * point_stride, point_stride);
    store_points<4>(minus, v + 12 * point_stride, point_stride);
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) {
      Axis::pair(Axis::kB, Axis::kA2, at(1, j), at(2, j), at(3, j), at(4, j), plus[j], minus[j]);
    }
    store_points<4>(plus, v + 18 * point_stride, point_stride);
    store_points<4>(minus, v + 24 * point_stride, point_stride);
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) plus[j] = Axis::end(at(1, j), at(3, j), at(5, j));
    store_points<4>(plus, v + 30 * point_stride, point_stride);
  }
}

template <int M, class T>
void winograd_input(const WinogradInput& in, int64_t c_begin, int64_t c_end, float* v, int64_t line_stride,
                    int64_t point_stride) {
  constexpr int kSize = M + 2;
  constexpr int64_t kPerFloat = sizeof(float) / sizeof(T), kLine = kWinogradLine * kPerFloat;
  const T* image = static_cast<const T*>(in.image);
  const bool inside = in.y0 >= 0 && in.x0 >= 0 && in.y0 + kSize <= in.h && in.x0 + kSize <= in.w;
  const int64_t row = in.w * in.c, corner = in.y0 * row + in.x0 * in.c;
  for (int64_t c = c_begin; c < c_end; c += kWidth) {
    const int64_t channels = c_end - c < kWidth ? c_end - c : kWidth;
    T* to = reinterpret_cast<T*>(v + c / kLine * line_stride) + c % kLine;
    if (inside && channels == kWidth) {
      input_vector<M>(image + corner + c, row, in.c, to, point_stride * kPerFloat);
      continue;
    }
    alignas(64) float patch[kSize * kSize * kWidth];
    for (int i = 0; i < kSize; ++i) {
      for (int j = 0; j < kSize; ++j) {
        const int64_t y = in.y0 + i, x = in.x0 + j;
        const bool exists = y >= 0 && y < in.h && x >= 0 && x < in.w;
        const Vec pixel = exists ? load_lanes(image + y * row + x * in.c + c, channels) : Vec{};
        store(patch + (i * kSize + j) * kWidth, pixel);
      }
    }
    input_vector<M>(static_cast<const float*>(patch), kSize * kWidth, kWidth, to, point_stride * kPerFloat);
  }
}

// A^T m along one axis: y_i = sum over the points p of p^i m_p, infinity only in the last; F(4, 3) in two halves that
// share their common terms: y0, y2 need the sums over +-p and y1, y3 the differences.
struct OutputAxis4 {
  static constexpr double a = kPointA, b = kPointB;
  static void even(Vec m0, Vec m1, Vec m2, Vec m3, Vec m4, Vec& y0, Vec& y2) {
    const Vec sum_a = m1 + m2, sum_b = m3 + m4;
    y0 = m0 + sum_a + sum_b;
    y2 = fma(splat(float(b * b)), sum_b, splat(float(a * a)) * sum_a);
  }
  static void odd(Vec m1, Vec m2, Vec m3, Vec m4, Vec m5, Vec& y1, Vec& y3) {
    const Vec difference_a = m1 - m2, difference_b = m3 - m4;
    y1 = fma(splat(float(b)), difference_b, splat(float(a)) * difference_a);
    y3 = fma(splat(float(b * b * b)), difference_b, fma(splat(float(a * a * a)), difference_a, m5));
  }
};

inline void output_axis(const Vec (&m)[6], Vec (&y)[4]) {
  OutputAxis4::even(m[0], m[1], m[2], m[3], m[4], y[0], y[2]);
  OutputAxis4::odd(m[1], m[2], m[3], m[4], m[5], y[1], y[3]);
}

inline void output_axis(const Vec (&m)[4], Vec (&y)[2]) {
  y[0] = m[0] + m[1] + m[2];
  y[1] = m[1] - m[2] + m[3];
}

// What all pixels of a vector of channels share. bad: 0, or NaN in every lane that met a value that was not finite.
struct OutputLanes {
  Vec scale, shift, low, bad;
};

// One vector of channels of one tile, from row i of A^T m on. kWhole: all M x M pixels and all lanes exist.
template <int M, class T, bool kWhole, bool kResidual>
inline void output_row(const Vec (&m)[M + 2], const WinogradOutput& to, int i, int64_t lane, int64_t lanes,
                       OutputLanes& with) {
  if (!kWhole && i >= to.height) return;
  const int width = kWhole ? M : to.width;
  Vec y[M];
  output_axis(m, y);
#pragma GCC unroll 4
  for (int j = 0; j < M; ++j) {
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

template <int M, class T, bool kWhole, bool kResidual>
[[gnu::noinline]] bool output_vector(const float* products, const WinogradOutput& to, int64_t lane, int64_t lanes) {
  constexpr int kSize = M + 2;
  const auto at = [&](int i, int j) { return load(products + (i * kSize + j) * kWinogradPanel + lane); };
  const auto channels = [&](const float* p) { return kWhole ? load(p + lane) : load_lanes(p + lane, lanes); };
  OutputLanes with{to.scale ? channels(to.scale) : splat(1.0f), channels(to.shift),
                   splat(to.relu ? 0.0f : -__builtin_inff()), Vec{}};
  const auto finish = [&](const Vec(&m)[kSize], int i) {
    output_row<M, T, kWhole, kResidual>(m, to, i, lane, lanes, with);
  };
  Vec first[kSize], second[kSize];
  if constexpr (M == 2) {
#pragma GCC unroll 4
    for (int j = 0; j < kSize; ++j) {
      const Vec column[4] = {at(0, j), at(1, j), at(2, j), at(3, j)};
      Vec y[2];
      output_axis(column, y);
      first[j] = y[0];
      second[j] = y[1];
    }
    finish(first, 0);
    finish(second, 1);
  } else {
    // 60 loads instead of 36, but 12 intermediate values instead of 24, which would be spilled.
#pragma GCC unroll 6
    for (int j = 0; j < kSize; ++j) {
      OutputAxis4::even(at(0, j), at(1, j), at(2, j), at(3, j), at(4, j), first[j], second[j]);
    }
    finish(first, 0);
    finish(second, 2);
#pragma GCC unroll 6
    for (int j = 0; j < kSize; ++j) {
      OutputAxis4::odd(at(1, j), at(2, j), at(3, j), at(4, j), at(5, j), first[j], second[j]);
    }
    finish(first, 1);
    finish(second, 3);
  }
  return all_zero(with.bad);
}

template <int M, class T>
bool winograd_output(const float* products, const WinogradOutput& to) {
  bool finite = true;
  for (int64_t lane = 0; lane < to.channels; lane += kWidth) {
    const int64_t lanes = to.channels - lane < kWidth ? to.channels - lane : kWidth;
    const bool whole = to.height == M && to.width == M && lanes == kWidth;
    if (to.residual) {
      finite &= (whole ? output_vector<M, T, true, true> : output_vector<M, T, false, true>)(products, to, lane, lanes);
    } else {
      finite &=
          (whole ? output_vector<M, T, true, false> : output_vector<M, T, false, false>)(products, to, lane, lanes);
    }
  }
  return finite;
}

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
