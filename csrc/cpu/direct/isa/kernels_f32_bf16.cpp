// Products of packed pixels and weights on vectors. kRows pixels x 2 vectors of filters stay in registers, or 1 where a
// panel has few filters.
#include <algorithm>
#include <type_traits>
#include <utility>

#include "cpu/base/dot_bf16.h"
#include "cpu/direct/isa/kernels.h"
#include "cpu/direct/isa/lines.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {
namespace {

// Sums, 2 weights and 1 broadcast take 31 of AVX-512's 32 registers, 15 of the 16 of AVX2 and SSE.
constexpr int kMaxRows = kWidth == 16 ? 14 : 6;
constexpr int64_t kCallRows = 4;  // groups of kMaxRows pixels in a call, so that the weights they share are still in L1

// A line of each of kRows pixels times its weights. A line has `count` channels, or pairs of channels.
template <bool kBf16, int kVectors, int kRows>
inline void add_line(const uint16_t* pixels, const uint16_t* weights, int count, int part,
                     Vec (&sum)[kRows][kVectors]) {
  constexpr int kNear = 16;
  for (int i = 0; i < count; ++i) {
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
template <bool kBf16, int kVectors, int kRows>
[[gnu::noinline]] void rows(const DirectGemm& g, int64_t begin, int64_t end, const uint16_t* a, float* c, bool add) {
  for (int part = 0; part < g.filters; part += kVectors * kWidth) {
    Vec sum[kRows][kVectors] = {};
    const uint16_t* b = g.b + begin * g.tap_count * kDirectPanel * kDirectLine;
    for (int64_t block = begin; block < end; ++block) {
      const uint16_t* pixels = a + block * g.block_stride;
      const int count = block + 1 == g.blocks ? static_cast<int>(g.last) : 16;
      for (int64_t tap = 0; tap < g.tap_count; ++tap, b += kDirectPanel * kDirectLine) {
        if (count == 16) {  // known while compiling
          add_line<kBf16>(pixels + g.taps[tap], b, 16, part, sum);
        } else {
          add_line<kBf16>(pixels + g.taps[tap], b, count, part, sum);
        }
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
constexpr Rows rows_of(int64_t count, bool few_filters, std::integer_sequence<int, kRowsMinusOne...>) {
  constexpr Rows kAll[2][kMaxRows] = {{rows<kBf16, 2, kRowsMinusOne + 1>...}, {rows<kBf16, 1, kRowsMinusOne + 1>...}};
  return kAll[few_filters][count - 1];
}

template <bool kBf16>
void gemm(const DirectGemm& g) {
  const int64_t parts = (g.pixels + kMaxRows - 1) / kMaxRows;
  const int64_t step = std::max<int64_t>(1, kDirectSumLines / g.tap_count);
  for (int64_t block = 0; block < g.blocks; block += step) {
    const int64_t end = std::min(g.blocks, block + step);
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t first = g.pixels * part / parts, count = g.pixels * (part + 1) / parts - first;
      rows_of<kBf16>(count, g.filters <= kWidth, std::make_integer_sequence<int, kMaxRows>{})(
          g, block, end, g.a + first * kDirectLine, g.c + first * kDirectPanel, g.add || block > 0);
    }
  }
}

// kRows neighbouring pixels of a 1x1 convolution, for filters [part, part + kVectors * kWidth) of a panel.
template <bool kBf16, int kVectors, int kRows>
[[gnu::noinline]] void in_place(const DirectInPlace& g, int64_t pixel, int part) {
  using T = std::conditional_t<kBf16, bf16, float>;
  const int64_t words = kBf16 ? g.c / 2 : g.c;  // values of 32 bits of a pixel
  const float* a = static_cast<const float*>(g.x) + pixel * words;
  int64_t lanes[kVectors];
  const float* b[kVectors];
  Vec sum[kRows][kVectors] = {}, done[kRows][kVectors];  // done: the shift and the sums of earlier lines
#pragma GCC unroll 2
  for (int q = 0; q < kVectors; ++q) {
    const int filter = part + q * kWidth;
    lanes[q] = std::min<int64_t>(kWidth, g.filters - filter);
    b[q] = reinterpret_cast<const float*>(g.b) + (kBf16 ? filter / 16 * 256 + filter % 16 : filter);
    const Vec shift = load_lanes(g.shift + filter, lanes[q]);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) done[r][q] = shift;
  }
  for (int64_t line = 0; line * 16 < words; ++line) {
    if (line > 0 && line % kDirectSumLines == 0) {
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
        for (int q = 0; q < kVectors; ++q) {
          done[r][q] += sum[r][q];
          sum[r][q] = Vec{};
        }
      }
    }
    const int count = static_cast<int>(std::min<int64_t>(16, words - line * 16));
    for (int i = 0; i < count; ++i) {
      Vec weight[kVectors];
#pragma GCC unroll 2
      for (int q = 0; q < kVectors; ++q) weight[q] = load(b[q] + i * (kBf16 ? 16 : kDirectPanel));
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        float word;  // a pair of bfloat16 need not be aligned like a float
        std::memcpy(&word, a + r * words + i, sizeof(word));
        const Vec value = broadcast(&word);
#pragma GCC unroll 2
        for (int q = 0; q < kVectors; ++q) {
          sum[r][q] = kBf16 ? dot(value, weight[q], sum[r][q]) : fma(value, weight[q], sum[r][q]);
        }
      }
    }
    a += 16;
#pragma GCC unroll 2
    for (int q = 0; q < kVectors; ++q) b[q] += kDirectPanel * kDirectLine / 2;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int q = 0; q < kVectors; ++q) sum[r][q] += done[r][q];
  }
  if (g.activation <= Pointwise::relu && !g.residual && lanes[kVectors - 1] == kWidth) {
    T* out = static_cast<T*>(g.out) + pixel * g.k + part;
    const bool relu = g.activation == Pointwise::relu;
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int q = 0; q < kVectors; ++q) {
        store_operand(out + r * g.k + q * kWidth, relu ? pointwise(sum[r][q], Pointwise::relu) : sum[r][q]);
      }
    }
    return;
  }
  // In memory, so that the code of the functions stands here once.
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int q = 0; q < kVectors; ++q) done[r][q] = sum[r][q];
  }
  for (int q = 0; q < kVectors; ++q) {
    const int64_t at = pixel * g.k + part + q * kWidth;
    T* out = static_cast<T*>(g.out) + at;
    const T* residual = g.residual ? static_cast<const T*>(g.residual) + at : nullptr;
    for (int r = 0; r < kRows; ++r, out += g.k) {
      Vec value = done[r][q];
      if (residual) {
        value += load_lanes(residual, lanes[q]);
        residual += g.k;
      }
      store_lanes(out, pointwise(value, g.activation), lanes[q]);
    }
  }
}

using InPlace = void (*)(const DirectInPlace&, int64_t, int);
template <bool kBf16, int... kRowsMinusOne>
constexpr InPlace in_place_of(int64_t count, bool few_filters, std::integer_sequence<int, kRowsMinusOne...>) {
  constexpr InPlace kAll[2][kMaxRows] = {{in_place<kBf16, 2, kRowsMinusOne + 1>...},
                                         {in_place<kBf16, 1, kRowsMinusOne + 1>...}};
  return kAll[few_filters][count - 1];
}

template <bool kBf16>
void panel_in_place(const DirectInPlace& g) {
  const int64_t parts = (g.pixels + kMaxRows - 1) / kMaxRows;
  for (int part = 0; part < g.filters; part += 2 * kWidth) {
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t first = g.pixels * i / parts, count = g.pixels * (i + 1) / parts - first;
      in_place_of<kBf16>(count, g.filters - part <= kWidth, std::make_integer_sequence<int, kMaxRows>{})(g, first,
                                                                                                         part);
    }
  }
}

void nothing(void*) {}
void nothing_kept(const void*) {}

}  // namespace

extern const DirectKernels direct_kernels[2] = {// for float32 and for bfloat16
                                                {kCallRows * kMaxRows, nothing, nothing_kept, pack_lines<float>,
                                                 gemm<false>, direct_output<float>, panel_in_place<false>},
                                                {kCallRows * kMaxRows, nothing, nothing_kept, pack_lines<uint16_t>,
                                                 gemm<true>, direct_output<bf16>, panel_in_place<true>}};

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
