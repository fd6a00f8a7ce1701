// The micro-kernel: kRows x kVectors sums stay in registers over all input channels. Compiled once per instruction set.
#pragma once

#include "winograd_kernels.h"
#include "winograd_vec.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {

template <int kRows, int kVectors>
[[gnu::noinline]] void winograd_gemm(const WinogradGemm& g) {
  constexpr int kPart = kVectors * kWidth;
  constexpr int kNear = 16;  // channels; the points lie 4 KiB apart or more, where no hardware prefetcher follows
  const int64_t half_step = g.ahead_step / 2;
  for (int part = 0; part < kWinogradPanel; part += kPart) {
    Vec sum[kRows][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int q = 0; q < kVectors; ++q) {
        sum[r][q] = g.accumulate ? load(g.products + r * g.product_stride + part + q * kWidth) : Vec{};
      }
    }
    const float* a = g.v;
    const float* b = g.u + part;
    const char* ahead = g.ahead;
    for (int64_t left = g.c; left > 0; left -= kWinogradLine, a += g.line_stride) {
      const int64_t line = left < kWinogradLine ? left : kWinogradLine;
      for (int64_t i = 0; i < line; ++i, b += kWinogradPanel, ahead += g.ahead_step) {
#pragma GCC unroll 4
        for (int q = 0; q < kPart; q += 16) __builtin_prefetch(b + kNear * kWinogradPanel + q);
        if (i < kRows) __builtin_prefetch(a + (kRows + i) * kWinogradLine);  // this line of the next point
        __builtin_prefetch(ahead, 0, 2);
        __builtin_prefetch(ahead + half_step, 0, 2);
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
      for (int q = 0; q < kVectors; ++q) store(g.products + r * g.product_stride + part + q * kWidth, sum[r][q]);
    }
  }
}

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
