// The micro-kernel: kTiles x kVectors sums stay in registers over all input channels. This file is compiled once per
// instruction set.
#pragma once

#include "cpu/base/dot_bf16.h"
#include "cpu/base/vec_more.h"
#include "cpu/winograd/isa/kernels.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {

// A sum over more input channels is made of sums of kSumLength terms, because the error of a running sum grows with the
// root of its length. 512 channels: RMS error F(2x2) 4.6e-7 -> 2.7e-7, F(4x4) 1.3e-6 -> 7.9e-7, for 2 % of F(4x4)'s
// time (measured: docs/design/winograd.md).
constexpr int64_t kSumLength = 64;

// Sums, 2 weights and 1 broadcast take 31 of AVX-512's 32 registers, 15 of the 16 of AVX2 and SSE.
constexpr int kRows = kWidth == 16 ? 14 : 6;
static_assert(kRows <= kWinogradMaxRows);

template <bool kBf16, int kTiles, int kVectors>
[[gnu::noinline]] void winograd_gemm(const WinogradGemm& g) {
  constexpr int kPart = kVectors * kWidth;
  constexpr int kNear = 16;  // channels; points lie 4 KiB apart or more, and hardware prefetchers do not cross 4 KiB
  const int64_t to_middle = g.ahead_step / 2;
  for (int part = 0; part < kWinogradPanel; part += kPart) {
    const float* a = g.v;
    const float* b = g.u + part;
    const char* ahead = g.ahead;
    bool accumulate = g.accumulate;
    for (int64_t done = 0; done < g.c; done += kSumLength, accumulate = true) {
      Vec sum[kTiles][kVectors] = {};
      const int64_t end = g.c - done < kSumLength ? g.c - done : kSumLength;
      for (int64_t left = end; left > 0; left -= kWinogradLine, a += g.line_stride) {
        const int64_t line = left < kWinogradLine ? left : kWinogradLine;
        for (int64_t i = 0; i < line; ++i, b += kWinogradPanel, ahead += g.ahead_step) {
#pragma GCC unroll 4
          for (int q = 0; q < kPart; q += 16) __builtin_prefetch(b + kNear * kWinogradPanel + q);
          if (i < kTiles) __builtin_prefetch(a + (kTiles + i) * kWinogradLine);  // the same line of the next point
          __builtin_prefetch(ahead, 0, 2);
          __builtin_prefetch(ahead + to_middle, 0, 2);
          Vec weights[kVectors];
#pragma GCC unroll 4
          for (int q = 0; q < kVectors; ++q) weights[q] = load(b + q * kWidth);
#pragma GCC unroll 16
          for (int r = 0; r < kTiles; ++r) {
            const Vec value = broadcast(a + r * kWinogradLine + i);
#pragma GCC unroll 4
            for (int q = 0; q < kVectors; ++q) {
              sum[r][q] = kBf16 ? dot(value, weights[q], sum[r][q]) : fma(value, weights[q], sum[r][q]);
            }
          }
        }
      }
#pragma GCC unroll 16
      for (int r = 0; r < kTiles; ++r) {
#pragma GCC unroll 4
        for (int q = 0; q < kVectors; ++q) {
          float* to = g.products + r * g.product_stride + part + q * kWidth;
          store(to, accumulate ? load(to) + sum[r][q] : sum[r][q]);
        }
      }
    }
  }
}

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
