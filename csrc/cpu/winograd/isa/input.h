// The input transform. A lane is a channel. This file is compiled once per instruction set (vec.h).
#pragma once

#include "cpu/base/dot_bf16.h"
#include "cpu/base/vec_more.h"
#include "cpu/winograd/isa/kernels.h"
#include "cpu/winograd/points.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {

// The transform along one axis: the points of B^T d. M outputs need M + 2 pixels and as many points. With a * b = 1:
//   M = 4: d0 - (a^2 + b^2) d2 + d4 | (d4 - b^2 d2) +- a (d3 - b^2 d1) | (d4 - a^2 d2) +- b (d3 - a^2 d1) | d1 .. d5
//   M = 3, without a: d0 + b d1 - a^2 d2 - a d3 | 2 (b d1 - a d3) | (b - a) (d1 + d3) + (b^2 - a^2) d2,
//          (a + b) (d1 - d3) + (b^2 - a^2) d2 | d4 + a d3 - b^2 d2 - b d1
//   M = 2: d0 - d2 | d2 +- d1 | d3 - d1
// The rows of M = 3 include the factor (p - a): tiles of M = 3 use the weights of M = 4, which lack this factor.
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
struct InputAxis<3> {
  static constexpr float kA = float(kPointA), kB = float(kPointB), kSum = float(kPointA + kPointB);
  static constexpr float kA2 = float(kPointA * kPointA), kB2 = float(kPointB * kPointB);
  static constexpr float kDifference = float(kPointB - kPointA), kDifference2 = kB2 - kA2;

  static Vec first(Vec d0, Vec d1, Vec d2, Vec d3) {
    return fma(splat(-kA), d3, fma(splat(-kA2), d2, fma(splat(kB), d1, d0)));
  }
  static Vec single(Vec d1, Vec d3) { return fma(splat(-2 * kA), d3, splat(2 * kB) * d1); }
  static void pair(Vec d1, Vec d2, Vec d3, Vec& plus, Vec& minus) {
    const Vec even = splat(kDifference2) * d2;
    plus = fma(splat(kDifference), d1 + d3, even);
    minus = fma(splat(kSum), d1 - d3, even);
  }
  static Vec last(Vec d1, Vec d2, Vec d3, Vec d4) {
    return fma(splat(-kB), d1, fma(splat(-kB2), d2, fma(splat(kA), d3, d4)));
  }
  static void all(const Vec (&d)[5], Vec (&r)[5]) {
    r[0] = first(d[0], d[1], d[2], d[3]);
    r[1] = single(d[1], d[3]);
    pair(d[1], d[2], d[3], r[2], r[3]);
    r[4] = last(d[1], d[2], d[3], d[4]);
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

template <int W, class T>
inline void store_points(const Vec (&d)[W + 2], T* v, int64_t point_stride) {
  Vec r[W + 2];
  InputAxis<W>::all(d, r);
#pragma GCC unroll 6
  for (int j = 0; j < W + 2; ++j) store_operand(v + kPlaces<W>[j] * point_stride, r[j]);
}

// Transforms one vector of channels of one tile of H x W outputs. The rows of points are made one after another, or in
// pairs with common terms. The pixels are loaded again for each row or pair: 84 loads, but 36 intermediate values need
// no spill.
template <int H, int W, class From, class T>
[[gnu::noinline]] void input_vector(const From* d, int64_t row, int64_t col, T* v, int64_t point_stride) {
  using Axis = InputAxis<H>;
  constexpr int kWide = W + 2;
  const auto at = [&](int i, int j) { return load(d + i * row + j * col); };
  const auto put = [&](const Vec(&values)[kWide], int i) {
    store_points<W>(values, v + i * kPointsOf<W> * point_stride, point_stride);
  };
  if constexpr (H == 2) {
    Vec t[4][kWide];
#pragma GCC unroll 4
    for (int j = 0; j < kWide; ++j) {
      const Vec column[4] = {at(0, j), at(1, j), at(2, j), at(3, j)};
      Vec r[4];
      Axis::all(column, r);
      for (int i = 0; i < 4; ++i) t[i][j] = r[i];
    }
    for (int i = 0; i < 4; ++i) put(t[i], i);
  } else {
    Vec plus[kWide], minus[kWide];
#pragma GCC unroll 6
    for (int j = 0; j < kWide; ++j) {
      if constexpr (H == 4) plus[j] = Axis::end(at(0, j), at(2, j), at(4, j));
      if constexpr (H == 3) plus[j] = Axis::first(at(0, j), at(1, j), at(2, j), at(3, j));
    }
    put(plus, 0);
    if constexpr (H == 4) {
#pragma GCC unroll 6
      for (int j = 0; j < kWide; ++j) {
        Axis::pair(Axis::kA, Axis::kB2, at(1, j), at(2, j), at(3, j), at(4, j), plus[j], minus[j]);
      }
      put(plus, 1);
      put(minus, 2);
    } else {
#pragma GCC unroll 6
      for (int j = 0; j < kWide; ++j) minus[j] = Axis::single(at(1, j), at(3, j));
      put(minus, 2);
    }
#pragma GCC unroll 6
    for (int j = 0; j < kWide; ++j) {
      if constexpr (H == 4) {
        Axis::pair(Axis::kB, Axis::kA2, at(1, j), at(2, j), at(3, j), at(4, j), plus[j], minus[j]);
      } else {
        Axis::pair(at(1, j), at(2, j), at(3, j), plus[j], minus[j]);
      }
    }
    put(plus, 3);
    put(minus, 4);
#pragma GCC unroll 6
    for (int j = 0; j < kWide; ++j) {
      if constexpr (H == 4) plus[j] = Axis::end(at(1, j), at(3, j), at(5, j));
      if constexpr (H == 3) plus[j] = Axis::last(at(1, j), at(2, j), at(3, j), at(4, j));
    }
    put(plus, 5);
  }
}

template <int H, int W, class T>
void winograd_input(const WinogradInput& in, int64_t c_begin, int64_t c_end, float* v, int64_t line_stride,
                    int64_t point_stride) {
  constexpr int kHigh = H + 2, kWide = W + 2;
  constexpr int64_t kPerFloat = sizeof(float) / sizeof(T), kLine = kWinogradLine * kPerFloat;
  const T* image = static_cast<const T*>(in.image);
  const bool inside = in.y0 >= 0 && in.x0 >= 0 && in.y0 + kHigh <= in.h && in.x0 + kWide <= in.w;
  const int64_t row = in.w * in.c, corner = in.y0 * row + in.x0 * in.c;
  for (int64_t c = c_begin; c < c_end; c += kWidth) {
    const int64_t channels = c_end - c < kWidth ? c_end - c : kWidth;
    T* to = reinterpret_cast<T*>(v + c / kLine * line_stride) + c % kLine;
    if (inside && channels == kWidth) {
      input_vector<H, W>(image + corner + c, row, in.c, to, point_stride * kPerFloat);
      continue;
    }
    alignas(64) float patch[kHigh * kWide * kWidth];
    for (int i = 0; i < kHigh; ++i) {
      for (int j = 0; j < kWide; ++j) {
        const int64_t y = in.y0 + i, x = in.x0 + j;
        const bool exists = y >= 0 && y < in.h && x >= 0 && x < in.w;
        const Vec pixel = exists ? load_lanes(image + y * row + x * in.c + c, channels) : Vec{};
        store(patch + (i * kWide + j) * kWidth, pixel);
      }
    }
    input_vector<H, W>(static_cast<const float*>(patch), kWide * kWidth, kWidth, to, point_stride * kPerFloat);
  }
}

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
