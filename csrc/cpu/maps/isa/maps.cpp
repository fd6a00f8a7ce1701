// The passes of maps.h on vectors of channels.
#include <algorithm>

#include "cpu/base/vec_more.h"
#include "cpu/maps/isa/kernels.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {
namespace {

// Calls body(channel, lanes) for vectors of channels. Where there are enough channels the last vector overlaps the one
// before it, so that every vector is whole.
template <class Body>
void for_vectors(int64_t begin, int64_t end, const Body& body) {
  if (end - begin < kWidth) return body(begin, end - begin);
  for (int64_t c = begin; c < end; c += kWidth) body(std::min(c, end - kWidth), kWidth);
}

template <class T>
void mean(const MapShape& s, const void* x, void* out, int64_t begin, int64_t end) {
  const int64_t pieces = (s.c + kMeanChannels - 1) / kMeanChannels;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t first = i % pieces * kMeanChannels;
    const T* image = static_cast<const T*>(x) + i / pieces * s.h * s.w * s.c;
    for_vectors(first, std::min(s.c, first + kMeanChannels), [&](int64_t c, int64_t lanes) {
      Vec sum{};
      for (int64_t row = 0; row < s.h; ++row) {  // sums of rows: one sum of all pixels would have a larger error
        Vec of_row{};
        const T* pixel = image + row * s.w * s.c + c;
        for (int64_t p = 0; p < s.w; ++p, pixel += s.c) of_row += load_lanes(pixel, lanes);
        sum += of_row;
      }
      store_lanes(static_cast<T*>(out) + i / pieces * s.c + c, sum / static_cast<float>(s.h * s.w), lanes);
    });
  }
}

template <class T>
void gate(const MapShape& s, const void* x, const void* gates, const void* residual, bool relu, void* out,
          int64_t begin, int64_t end) {
  const int64_t pixels = s.h * s.w;
  for (int64_t i = begin; i < end; ++i) {
    const T* of_image = static_cast<const T*>(gates) + i / pixels * s.c;
    const T* from = static_cast<const T*>(x) + i * s.c;
    const T* add = residual ? static_cast<const T*>(residual) + i * s.c : nullptr;
    T* to = static_cast<T*>(out) + i * s.c;
    for_vectors(0, s.c, [&](int64_t c, int64_t lanes) {
      Vec value = load_lanes(from + c, lanes) * load_lanes(of_image + c, lanes);
      if (add) value += load_lanes(add + c, lanes);
      store_lanes(to + c, relu ? activate(value, Activation::relu) : value, lanes);
    });
  }
}

template <class T>
void max_pool(const PoolShape& s, const void* x, void* out, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const T* image = static_cast<const T*>(x) + i / s.p * s.x.h * s.x.w * s.x.c;
    const int64_t top = i % s.p * s.stride - s.padding;
    const int64_t y0 = std::max<int64_t>(0, top), y1 = std::min(s.x.h, top + s.kernel);
    for (int64_t q = 0; q < s.q; ++q) {
      const int64_t left = q * s.stride - s.padding;
      const int64_t x0 = std::max<int64_t>(0, left), x1 = std::min(s.x.w, left + s.kernel);
      T* to = static_cast<T*>(out) + (i * s.q + q) * s.x.c;
      for_vectors(0, s.x.c, [&](int64_t c, int64_t lanes) {
        Vec most = splat(-__builtin_inff());
        for (int64_t y = y0; y < y1; ++y) {
          for (int64_t column = x0; column < x1; ++column) {
            const Vec value = load_lanes(image + (y * s.x.w + column) * s.x.c + c, lanes);
            most = value > most ? value : value == value ? most : value;
          }
        }
        store_lanes(to + c, most, lanes);
      });
    }
  }
}

}  // namespace

extern const MapKernels map_kernels[2] = {// for float32 and for bfloat16
                                          {mean<float>, gate<float>, max_pool<float>},
                                          {mean<bf16>, gate<bf16>, max_pool<bf16>}};

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
