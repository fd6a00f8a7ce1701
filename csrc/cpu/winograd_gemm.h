// The micro-kernel: kRows x kVectors sums stay in registers over all input channels. Compiled once per instruction set.
#pragma once

#include "winograd_kernels.h"
#include "winograd_vec.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {

template <int kRows, int kVectors>
[[gnu::noinline]] void winograd_gemm(const float* v, const float* u, int64_t c, float* products, int64_t row_stride) {
  constexpr int kPart = kVectors * kWidth;
  for (int part = 0; part < kWinogradPanel; part += kPart) {
    Vec sum[kRows][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int q = 0; q < kVectors; ++q) sum[r][q] = Vec{};
    }
    const float* a = v;
    const float* b = u + part;
    for (int64_t left = c; left > 0; left -= kWinogradLine, a += kRows * kWinogradLine) {
      const int64_t line = left < kWinogradLine ? left : kWinogradLine;
      for (int64_t i = 0; i < line; ++i, b += kWinogradPanel) {
        Vec weights[kVectors];
#pragma GCC unroll 4
        for (int q = 0; q < kVectors; ++q) weights[q] = load(b + q * kWidth);
#pragma GCC unroll 16
        for (int r = 0; r < kRows; ++r) {
          const Vec value = broadcast(a + r * kWinogradLine + i);
#pragma GCC unroll 4
          for (int q = 0; q < kVectors; ++q) sum[r][q] = fma(value, weights[q], sum[r][q]);
        }
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int q = 0; q < kVectors; ++q) store(products + r * row_stride + part + q * kWidth, sum[r][q]);
    }
  }
}

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
