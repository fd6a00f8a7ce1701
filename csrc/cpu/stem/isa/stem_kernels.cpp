#include "cpu/stem/isa/stem_kernels.h"

#include <utility>

#include "cpu/base/vec_more.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {
namespace {

constexpr int kPixels = kWidth == 16 ? 14 : 6;
constexpr int kVectors = 2;
static_assert(kPixels <= kStemMaxPixels);

template <int kCount>
[[gnu::noinline]] void row(const StemRow& r, int64_t offset) {
  for (int64_t part = 0; part < kStemPanel; part += kVectors * kWidth) {
    Vec sum[kCount][kVectors];
#pragma GCC unroll 16
    for (int p = 0; p < kCount; ++p) {
#pragma GCC unroll 2
      for (int q = 0; q < kVectors; ++q) sum[p][q] = Vec{};
    }
    const float* b = r.weights + part;
    for (int64_t y = 0; y < r.kernel; ++y) {
      const float* a = r.rows[y] + offset;
      for (int64_t i = 0; i < r.taps; ++i, ++a, b += kStemPanel) {
        const Vec weights[kVectors] = {load(b), load(b + kWidth)};
        const float* pixel = a;
#pragma GCC unroll 16
        for (int p = 0; p < kCount; ++p, pixel += r.step) {
          const Vec value = broadcast(pixel);
#pragma GCC unroll 2
          for (int q = 0; q < kVectors; ++q) sum[p][q] = fma(value, weights[q], sum[p][q]);
        }
      }
    }
    for (int q = 0; q < kVectors; ++q) {
      const int64_t lane = part + q * kWidth, left = r.channels - lane;
      if (left <= 0) return;
      const Vec shift = load_lanes(r.shift + lane, left < kWidth ? left : kWidth);
#pragma GCC unroll 16
      for (int p = 0; p < kCount; ++p) {
        // After ReLU the sign bit carries no information: see pool().
        const IntVec bits = bit_cast<IntVec>(at_least(Vec{}, sum[p][q] + shift));
        store(r.out + p * r.out_stride + lane, bit_cast<Vec>(bits & 0x7fffffff));
      }
    }
  }
}

// ReLU alone allows this comparison of bits: its results, without their signs, have the order of their bits, and every
// NaN is above infinity, so that a NaN wins, as in torch. After another activation the pool would have to compare
// floats.
template <class T>
void pool(const float* const* rows, int count, int64_t width, int64_t stride, int64_t channels, void* out) {
  for (int64_t p = 0; 2 * p < width; ++p) {
    const int64_t begin = p > 0 ? 2 * p - 1 : 0, end = 2 * p + 2 < width ? 2 * p + 2 : width;
    for (int64_t c = 0; c < channels; c += kWidth) {
      IntVec largest = {};
      for (int y = 0; y < count; ++y) {
        for (int64_t x = begin; x < end; ++x) {
          const IntVec value = bit_cast<IntVec>(load(rows[y] + x * stride + c));
          largest = value > largest ? value : largest;
        }
      }
      const int64_t left = channels - c;
      T* to = static_cast<T*>(out) + p * channels + c;
      if (left < kWidth) {
        store(to, bit_cast<Vec>(largest), static_cast<int>(left));
      } else {
        store(to, bit_cast<Vec>(largest));
      }
    }
  }
}

template <int... kCountMinusOne>
constexpr StemKernels kernels(std::integer_sequence<int, kCountMinusOne...>) {
  return {kPixels, {nullptr, row<kCountMinusOne + 1>...}, pool<float>, pool<bf16>};
}

}  // namespace

extern const StemKernels stem_kernels = kernels(std::make_integer_sequence<int, kPixels>{});

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
