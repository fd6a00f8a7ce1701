// Rows of the output of a depthwise convolution. The sums of some neighbouring pixels stay in registers, so that a
// pixel of the input is loaded once for all outputs of its row that read it.
#include <algorithm>

#include "cpu/base/dot_bf16.h"
#include "cpu/base/pointwise_vec.h"
#include "cpu/depthwise/isa/kernels.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {
namespace {

// Pixels of a call: the sums, a row of the filter and one pixel take 14 of AVX-512's 32 registers, 10 of AVX2's 16.
constexpr int kPixels = kWidth == 16 ? 8 : 4;

struct Place {
  int64_t row, column, channel;  // of the output: the row, the first pixel, the first channel
  int lanes;                     // channels, at most kWidth
};

// kCount neighbouring pixels of the output. kInside: all that they read lies inside of the image; else what lies
// outside is left out. kWhole: the channels fill a vector.
template <class T, int kKernel, int kStride, int kCount, bool kInside, bool kWhole>
inline void pixels(const DepthwiseRows& r, Place at) {
  const DepthwiseShape& s = *r.shape;
  const int64_t top = at.row * s.stride - s.padding, left = at.column * kStride - s.padding;
  const auto get = [&](const auto* from) { return kWhole ? load(from) : load(from, at.lanes); };
  Vec sum[kCount];
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) sum[i] = get(r.shift + at.channel);
  for (int64_t y = std::max<int64_t>(0, -top); y < std::min<int64_t>(kKernel, s.h - top); ++y) {
    const T* from = static_cast<const T*>(r.image) + ((top + y) * s.w + left) * s.c + at.channel;
    Vec weight[kKernel];
#pragma GCC unroll 5
    for (int x = 0; x < kKernel; ++x) weight[x] = get(r.weight + (y * kKernel + x) * s.c + at.channel);
#pragma GCC unroll 19
    for (int x = 0; x < (kCount - 1) * kStride + kKernel; ++x) {
      if (!kInside && (left + x < 0 || left + x >= s.w)) continue;
      const Vec value = get(from + x * s.c);
#pragma GCC unroll 8
      for (int i = 0; i < kCount; ++i) {
        const int tap = x - i * kStride;
        if (tap >= 0 && tap < kKernel) sum[i] = fma(value, weight[tap], sum[i]);
      }
    }
  }
  T* out = static_cast<T*>(r.out) + (at.row * s.q() + at.column) * s.c + at.channel;
#pragma GCC unroll 8
  for (int i = 0; i < kCount; ++i) {
    const Vec value = pointwise(sum[i], r.function);
    if (kWhole) {
      store_operand(out + i * s.c, value);
    } else {
      store(out + i * s.c, value, at.lanes);
    }
  }
}

template <class T, int kKernel, int kStride, bool kWhole>
inline void channels(const DepthwiseRows& r, Place at) {
  const DepthwiseShape& s = *r.shape;
  const int64_t q = s.q();
  // Pixels [first, last) read no pixel outside of the image.
  const int64_t first = std::min(q, (s.padding + kStride - 1) / kStride);
  const int64_t last = std::max(first, std::min(q, (s.w + s.padding - kKernel + kStride) / kStride));
  for (at.row = r.begin; at.row < r.end; ++at.row) {
    int64_t& x = at.column;
    for (x = 0; x + kPixels <= q; x += kPixels) {
      if (x >= first && x + kPixels <= last) {
        pixels<T, kKernel, kStride, kPixels, true, kWhole>(r, at);
      } else {
        pixels<T, kKernel, kStride, kPixels, false, kWhole>(r, at);
      }
    }
    for (; x + kPixels / 2 <= q; x += kPixels / 2) pixels<T, kKernel, kStride, kPixels / 2, false, kWhole>(r, at);
    for (; kPixels > 4 && x + 2 <= q; x += 2) pixels<T, kKernel, kStride, 2, false, kWhole>(r, at);
    if (x < q) pixels<T, kKernel, kStride, 1, false, kWhole>(r, at);
  }
}

template <class T, int kKernel, int kStride>
void rows(const DepthwiseRows& r) {
  const int64_t c = r.shape->c;
  if (c < kWidth) return channels<T, kKernel, kStride, false>(r, {0, 0, 0, static_cast<int>(c)});
  // All rows of some channels, then the next channels: what a row shares with the next one is then still in the L1
  // cache. The last vector may overlap the one before it: both write the same values.
  for (int64_t channel = 0; channel < c; channel += kWidth) {
    channels<T, kKernel, kStride, true>(r, {0, 0, std::min(channel, c - kWidth), kWidth});
  }
}

}  // namespace

extern const DepthwiseKernels depthwise_kernels[2] = {
    // for float32 and for bfloat16
    {{{rows<float, 3, 1>, rows<float, 3, 2>}, {rows<float, 5, 1>, rows<float, 5, 2>}}},
    {{{rows<bf16, 3, 1>, rows<bf16, 3, 2>}, {rows<bf16, 5, 1>, rows<bf16, 5, 2>}}}};

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
