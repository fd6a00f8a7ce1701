// Products of packed pixels and weights on vectors. kRows pixels x 2 vectors of filters stay in registers.
#include <algorithm>
#include <utility>

#include "cpu/base/dot_bf16.h"
#include "cpu/direct/isa/kernels.h"
#include "cpu/direct/isa/lines.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {
namespace {

// Sums, 2 weights and 1 broadcast take 31 of AVX-512's 32 registers, 15 of the 16 of AVX2 and SSE.
constexpr int kMaxRows = kWidth == 16 ? 14 : 6;
constexpr int kVectors = 2;
constexpr int64_t kCallRows = 4;  // groups of kMaxRows pixels in a call, so that the weights they share are still in L1
// A sum in registers has at most so many lines and is then added to memory. A longer sum has a larger error.
constexpr int64_t kSumLines = 9;

// A line of each of kRows pixels times its weights. A line has 16 channels, or 16 pairs of channels.
template <bool kBf16, int kRows>
inline void add_line(const uint16_t* pixels, const uint16_t* weights, int part, Vec (&sum)[kRows][kVectors]) {
  constexpr int kNear = 16;
  for (int i = 0; i < 16; ++i) {
    const float* a = reinterpret_cast<const float*>(pixels) + i;
    Vec b[kVectors];
#pragma GCC unroll 2
    for (int q = 0; q < kVectors; ++q) {
      const int filter = part + q * kWidth;
      const float* from = reinterpret_cast<const float*>(weights) +
                          (kBf16 ? filter / 16 * 256 + i * 16 + filter % 16 : i * kDirectPanel + filter);
      __builtin_prefetch(from + kNear * (kBf16 ? 16 : kDirectPanel));
      b[q] = load(from);
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec value = broadcast(a + r * 16);
#pragma GCC unroll 2
      for (int q = 0; q < kVectors; ++q) {
        if constexpr (kBf16) {
          sum[r][q] = dot(value, b[q], sum[r][q]);
        } else {
          sum[r][q] = fma(value, b[q], sum[r][q]);
        }
      }
    }
  }
}

// Multiplies blocks [begin, end) of kRows pixels, and adds the products to c or writes them to it.
template <bool kBf16, int kRows>
[[gnu::noinline]] void rows(const DirectGemm& g, int64_t begin, int64_t end, const uint16_t* a, float* c, bool add) {
  for (int part = 0; part < kDirectPanel; part += kVectors * kWidth) {
    Vec sum[kRows][kVectors] = {};
    const uint16_t* b = g.b + begin * g.tap_count * kDirectPanel * kDirectLine;
    for (int64_t block = begin; block < end; ++block) {
      const uint16_t* pixels = a + block * g.block_stride;
      for (int64_t tap = 0; tap < g.tap_count; ++tap, b += kDirectPanel * kDirectLine) {
        add_line<kBf16, kRows>(pixels + g.taps[tap], b, part, sum);
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int q = 0; q < kVectors; ++q) {
        float* to = c + r * kDirectPanel + part + q * kWidth;
        store(to, add ? load(to) + sum[r][q] : sum[r][q]);
      }
    }
  }
}

using Rows = void (*)(const DirectGemm&, int64_t, int64_t, const uint16_t*, float*, bool);
template <bool kBf16, int... kRowsMinusOne>
constexpr Rows rows_of(int64_t count, std::integer_sequence<int, kRowsMinusOne...>) {
  constexpr Rows kAll[] = {rows<kBf16, kRowsMinusOne + 1>...};
  return kAll[count - 1];
}

template <bool kBf16>
void gemm(const DirectGemm& g) {
  const int64_t parts = (g.pixels + kMaxRows - 1) / kMaxRows;
  const int64_t step = std::max<int64_t>(1, kSumLines / g.tap_count);
  for (int64_t block = 0; block < g.blocks; block += step) {
    const int64_t end = std::min(g.blocks, block + step);
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t first = g.pixels * part / parts, count = g.pixels * (part + 1) / parts - first;
      rows_of<kBf16>(count, std::make_integer_sequence<int, kMaxRows>{})(
          g, block, end, g.a + first * kDirectLine, g.c + first * kDirectPanel, g.add || block > 0);
    }
  }
}

void nothing(void*) {}
void nothing_kept(const void*) {}

}  // namespace

extern const DirectKernels direct_kernels[2] = {
    // for float32 and for bfloat16
    {kCallRows * kMaxRows, nothing, nothing_kept, pack_lines<float>, gemm<false>, direct_output<float>},
    {kCallRows * kMaxRows, nothing, nothing_kept, pack_lines<uint16_t>, gemm<true>, direct_output<bf16>}};

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
