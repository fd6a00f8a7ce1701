// The kernels of the gradient of a weight. The matrices are those of the forward F(2x2, 3x3), transposed: B^T d B of
// the input as there (input.h), A g A^T of the gradient, and G^T s G of the sums.
#include "cpu/winograd/isa/weight_gradient.h"

#include "cpu/base/vec_more.h"
#include "cpu/winograd/isa/filter_transform.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {
namespace {

void spread(Vec g0, Vec g1, Vec (&points)[4]) {
  points[0] = g0;
  points[1] = g0 + g1;
  points[2] = g0 - g1;
  points[3] = g1;
}

void gradient(const GradientTile& from, float* m, int64_t line_stride, int64_t point_stride) {
  for (int64_t k = 0; k < from.channels; k += kWidth) {
    const int64_t lanes = from.channels - k < kWidth ? from.channels - k : kWidth;
    const auto at = [&](int i, int j) {
      if (i >= from.height || j >= from.width) return Vec{};
      return load_lanes(from.pixel + i * from.row_stride + j * from.channels + k, lanes);
    };
    float* to = m + k / kWinogradLine * line_stride + k % kWinogradLine;
    Vec left[4], right[4];
    spread(at(0, 0), at(1, 0), left);
    spread(at(0, 1), at(1, 1), right);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      Vec row[4];
      spread(left[i], right[i], row);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) store(to + (i * 4 + j) * point_stride, row[j]);
    }
  }
}

// kRows x 2 sums stay in registers over the tiles.
constexpr int kRows = kWidth == 16 ? 8 : 4;

[[gnu::noinline]] void gemm_rows(const float* v, const float* m0, const float* m1, int64_t tiles, float* sums,
                                 bool accumulate) {
  Vec sum[kRows][2] = {};
  for (int64_t t = 0; t < tiles; ++t, v += kWinogradLine, m0 += kWinogradLine, m1 += kWinogradLine) {
    const Vec first = load(m0), second = load(m1);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const Vec value = broadcast(v + r);
      sum[r][0] = fma(value, first, sum[r][0]);
      sum[r][1] = fma(value, second, sum[r][1]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int q = 0; q < 2; ++q) {
      float* to = sums + r * kWinogradPanel + q * kWidth;
      store(to, accumulate ? load(to) + sum[r][q] : sum[r][q]);
    }
  }
}

void gemm(const GradientGemm& g) {
  for (int row = 0; row < kWinogradLine; row += kRows) {
    for (int lane = 0; lane < kWinogradPanel; lane += 2 * kWidth) {
      const auto at = [&](int64_t of) { return g.m + of / kWinogradLine * g.m_line_stride + of % kWinogradLine; };
      gemm_rows(g.v + row, at(lane), at(lane + kWidth), g.tiles, g.sums + row * kWinogradPanel + lane, g.accumulate);
    }
  }
}

void gather(Vec s0, Vec s1, Vec s2, Vec s3, Vec (&taps)[3]) {
  const Vec sum = splat(0.5f) * (s1 + s2);
  taps[0] = s0 + sum;
  taps[1] = splat(0.5f) * (s1 - s2);
  taps[2] = sum + s3;
}

bool finish(const float* sums, int64_t parts, int64_t part_stride, int64_t channels, int64_t filters,
            const WeightGradient& to) {
  // [channel][tap][32], or [tap][channel][32] where channels are neighbours: then runs of the result are rows here.
  alignas(64) float taps[kWinogradLine * 9 * kWinogradPanel];
  const bool dense = to.c_stride == 9 && to.tap_stride == 1;
  const int64_t channel_step = (dense ? 9 : 1) * kWinogradPanel;
  const int64_t tap_step = (dense ? 1 : kWinogradLine) * kWinogradPanel;
  Vec bad{};
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t lane = 0; lane < filters; lane += kWidth) {
      const int64_t lanes = filters - lane < kWidth ? filters - lane : kWidth;
      const auto at = [&](int point) {
        const float* from = sums + (point * kWinogradLine + c) * kWinogradPanel + lane;
        Vec sum = load_lanes(from, lanes);
        for (int64_t part = 1; part < parts; ++part) sum += load_lanes(from + part * part_stride, lanes);
        return sum;
      };
      Vec column[4][3];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) gather(at(j), at(4 + j), at(8 + j), at(12 + j), column[j]);
#pragma GCC unroll 3
      for (int i = 0; i < 3; ++i) {
        Vec row[3];
        gather(column[0][i], column[1][i], column[2][i], column[3][i], row);
#pragma GCC unroll 3
        for (int j = 0; j < 3; ++j) {
          bad += row[j] - row[j];
          store(taps + c * channel_step + (i * 3 + j) * tap_step + lane, row[j]);
        }
      }
    }
  }
  if (dense) {
    transpose(taps, kWinogradPanel, channels * 9, filters, to.data, to.k_stride);
  } else if (to.c_stride == 1) {
    for (int tap = 0; tap < 9; ++tap) {
      transpose(taps + tap * tap_step, kWinogradPanel, channels, filters, to.data + tap * to.tap_stride, to.k_stride);
    }
  } else {
    for (int64_t i = 0; i < filters * channels * 9; ++i) {
      const int64_t filter = i / 9 / channels, c = i / 9 % channels, tap = i % 9;
      to.data[filter * to.k_stride + c * to.c_stride + tap * to.tap_stride] =
          taps[c * channel_step + tap * tap_step + filter];
    }
  }
  return all_zero(bad);
}

}  // namespace

extern const WeightGradientKernels weight_gradient_kernels = {gradient, gemm, finish};

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
