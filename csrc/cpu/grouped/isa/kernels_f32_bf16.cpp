// A row of the output of a grouped convolution for 16 filters. The sums of some neighbouring pixels stay in registers.
// A word is a float, or a pair of bfloat16: one channel, or two. A word of the input is put into the lanes of its
// group's filters once for all outputs of the row that read it.
#include <algorithm>

#include "cpu/base/dot_bf16.h"
#include "cpu/base/pointwise_vec.h"
#include "cpu/grouped/isa/kernels.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {
namespace {

// Sums, a row of the filter, a word of the input and its place take 19 of AVX-512's 32 registers, 12 of AVX2's 16.
constexpr int kPixels = kWidth == 16 ? kGroupedPixels : kGroupedPixels / 2;

// kCount neighbouring pixels, of which the last may lie beyond the row: they are computed and not stored. kSmall: a
// vector has the filters of several groups, so their words are shuffled, else one word is broadcast.
template <class T, int kStride, bool kSmall, int kCount>
inline void pixels(const GroupedRow& r, int64_t column) {
  constexpr bool kBf16 = sizeof(T) == 2;
  constexpr int kLine = kBf16 ? 8 : 16, kChannels = kBf16 ? 2 : 1;  // words of a line, channels of a word
  const int64_t words = r.width / kChannels, count = std::min<int64_t>(kCount, r.pixels - column);
  BitVec lanes{};
  for (int i = 0; i < kWidth; ++i) lanes[i] = i;
  const BitVec places = (lanes & -static_cast<uint32_t>(r.width)) / kChannels;  // of small groups, 4 or 8 channels wide
  for (int lane = 0; lane < kGroupedPanel; lane += kWidth) {
    const int64_t group = r.width < kGroupedPanel ? lane - lane % r.width : 0;  // its first channel in the line
    Vec sum[kCount];
#pragma GCC unroll 14
    for (int i = 0; i < kCount; ++i) sum[i] = load(r.shift + lane);
    const float* weights = static_cast<const float*>(r.weight) + lane;
    for (int64_t y = 0; y < 3; ++y) {
      const char* line = static_cast<const char*>(r.lines) + y * r.row;
      for (int64_t word = 0; word < words; ++word, weights += 3 * kGroupedPanel) {
        const float* from = reinterpret_cast<const float*>(line + word / kLine * r.block) + column * kStride * kLine +
                            group / kChannels + (kSmall ? 0 : word % kLine);
        const BitVec place = places + static_cast<uint32_t>(word);
        Vec weight[3];
#pragma GCC unroll 3
        for (int x = 0; x < 3; ++x) weight[x] = load(weights + x * kGroupedPanel);
#pragma GCC unroll 29
        for (int x = 0; x < (kCount - 1) * kStride + 3; ++x) {
          Vec value;
          if constexpr (kSmall) {
            value = load(from + x * kLine);
            value = shuffle(value, value, place);
          } else {
            value = broadcast(from + x * kLine);
          }
#pragma GCC unroll 14
          for (int i = 0; i < kCount; ++i) {
            const int tap = x - i * kStride;
            if (tap < 0 || tap > 2) continue;
            sum[i] = kBf16 ? dot(value, weight[tap], sum[i]) : fma(value, weight[tap], sum[i]);
          }
        }
      }
    }
    Vec done[kCount];  // in memory, so that the code of the functions stands here once
#pragma GCC unroll 14
    for (int i = 0; i < kCount; ++i) done[i] = sum[i];
    T* out = static_cast<T*>(r.out) + column * r.pixel + lane;
    for (int64_t i = 0; i < count; ++i) store_operand(out + i * r.pixel, pointwise(done[i], r.function));
  }
}

template <class T, int kStride, bool kSmall>
void row_of(const GroupedRow& r) {
  for (int64_t column = 0; column < r.pixels;) {
    if (r.pixels - column > kPixels / 2) {
      pixels<T, kStride, kSmall, kPixels>(r, column);
      column += kPixels;
    } else {
      pixels<T, kStride, kSmall, kPixels / 2>(r, column);
      column += kPixels / 2;
    }
  }
}

template <class T, int kStride>
void row(const GroupedRow& r) {
  if (r.width < kWidth) return row_of<T, kStride, true>(r);
  row_of<T, kStride, false>(r);
}

}  // namespace

extern const GroupedKernels grouped_kernels[2] = {// for float32 and for bfloat16
                                                  {{row<float, 1>, row<float, 2>}},
                                                  {{row<bf16, 1>, row<bf16, 2>}}};

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
