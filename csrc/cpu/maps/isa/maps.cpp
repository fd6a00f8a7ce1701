// The passes of maps.h on vectors of channels.
#include "cpu/maps/maps.h"

#include <algorithm>

#include "cpu/base/parallel.h"
#include "cpu/base/vec_more.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {
namespace {

constexpr int64_t kGrain = 16384;  // values of a task that are worth waking a thread for

// Calls body(channel, lanes) for vectors of channels. Where there are enough channels the last vector overlaps the one
// before it, so that every vector is whole.
template <class Body>
void for_vectors(int64_t begin, int64_t end, const Body& body) {
  if (end - begin < kWidth) return body(begin, end - begin);
  for (int64_t c = begin; c < end; c += kWidth) body(std::min(c, end - kWidth), kWidth);
}

template <class T>
void mean(const MapShape& s, const T* x, T* out) {
  constexpr int64_t kPiece = 32;
  const int64_t pieces = (s.c + kPiece - 1) / kPiece;
  parallel_for(s.n * pieces, kGrain / (s.h * s.w * kPiece) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i % pieces * kPiece;
      const T* image = x + i / pieces * s.h * s.w * s.c;
      for_vectors(first, std::min(s.c, first + kPiece), [&](int64_t c, int64_t lanes) {
        Vec sum{};
        for (int64_t row = 0; row < s.h; ++row) {  // sums of rows: one sum of all pixels would have a larger error
          Vec of_row{};
          const T* pixel = image + row * s.w * s.c + c;
          for (int64_t p = 0; p < s.w; ++p, pixel += s.c) of_row += load_lanes(pixel, lanes);
          sum += of_row;
        }
        store_lanes(out + i / pieces * s.c + c, sum / static_cast<float>(s.h * s.w), lanes);
      });
    }
  });
}

template <class T>
void gate(const MapShape& s, const T* x, const T* gates, const T* residual, bool relu, T* out) {
  const int64_t pixels = s.h * s.w;
  parallel_for(s.n * pixels, kGrain / s.c + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* of_image = gates + i / pixels * s.c;
      for_vectors(0, s.c, [&](int64_t c, int64_t lanes) {
        Vec value = load_lanes(x + i * s.c + c, lanes) * load_lanes(of_image + c, lanes);
        if (residual) value += load_lanes(residual + i * s.c + c, lanes);
        store_lanes(out + i * s.c + c, relu ? activate(value, Activation::relu) : value, lanes);
      });
    }
  });
}

template <class T>
void max_pool(const PoolShape& s, const T* x, T* out) {
  parallel_for(s.x.n * s.p, kGrain / (s.q * s.x.c) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* image = x + i / s.p * s.x.h * s.x.w * s.x.c;
      const int64_t top = i % s.p * s.stride - s.padding;
      const int64_t y0 = std::max<int64_t>(0, top), y1 = std::min(s.x.h, top + s.kernel);
      for (int64_t q = 0; q < s.q; ++q) {
        const int64_t left = q * s.stride - s.padding;
        const int64_t x0 = std::max<int64_t>(0, left), x1 = std::min(s.x.w, left + s.kernel);
        T* to = out + (i * s.q + q) * s.x.c;
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
  });
}

}  // namespace

void map_mean(const MapShape& shape, bool is_bf16, const void* x, void* out) {
  if (is_bf16) return mean(shape, static_cast<const bf16*>(x), static_cast<bf16*>(out));
  mean(shape, static_cast<const float*>(x), static_cast<float*>(out));
}

void map_gate(const MapShape& shape, bool is_bf16, const void* x, const void* gates, const void* residual, bool relu,
              void* out) {
  const auto run = [&](auto type) {
    using T = decltype(type);
    gate(shape, static_cast<const T*>(x), static_cast<const T*>(gates), static_cast<const T*>(residual), relu,
         static_cast<T*>(out));
  };
  is_bf16 ? run(bf16{}) : run(float{});
}

void map_max_pool(const PoolShape& shape, bool is_bf16, const void* x, void* out) {
  if (is_bf16) return max_pool(shape, static_cast<const bf16*>(x), static_cast<bf16*>(out));
  max_pool(shape, static_cast<const float*>(x), static_cast<float*>(out));
}

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
