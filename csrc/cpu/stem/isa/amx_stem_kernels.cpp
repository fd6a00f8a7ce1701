// This file is compiled with the matrix unit (amx) and without it (portable), as its name says (csrc/README.md).
#include "cpu/stem/isa/amx_stem_kernels.h"

#include "cpu/base/amx_split.h"
#include "cpu/base/amx_tiles.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {
namespace {

constexpr int64_t kTile = 16 * kSplitFloats;

template <int kParts>
bool split_all(const float* from, int64_t values, uint16_t* to, int64_t part_stride) {
  typedef uint16_t Words __attribute__((vector_size(2 * kSplitFloats)));
  Words largest = {};  // largest exponent of each lane; where the first part is finite, the others are too
  for (int64_t i = 0; i < values; i += kSplitFloats) {
    split<kParts>(from + i, to + i, part_stride);
    Words exponent;
    std::memcpy(&exponent, to + i, sizeof(exponent));
    exponent &= 0x7f80;
    largest = exponent > largest ? exponent : largest;
  }
  bool finite = true;
  for (int lane = 0; lane < kSplitFloats; ++lane) finite &= largest[lane] != 0x7f80;
  return finite;
}

// Registers and order of the products are those of direct/isa/kernels_amx.cpp. The two tiles of pixels belong to two
// rows.
template <int kParts>
void gemm(const AmxStemGemm& g) {
  Tiles tiles;
  tiles.zero<0>();
  tiles.zero<1>();
  tiles.zero<2>();
  tiles.zero<3>();
  const uint16_t* b = g.b;
  for (int64_t row = 0; row < g.kernel; ++row, b += kParts * 2 * kTile) {
    const auto load_a = [&](int part) {
      tiles.load<4>(g.rows[0][row] + part * g.part_stride, g.pixel_stride);
      tiles.load<5>(g.rows[1][row] + part * g.part_stride, g.pixel_stride);
    };
    const auto load_b = [&](int part) {
      const uint16_t* from = b + (kParts - 1 - part) * 2 * kTile;
      tiles.load<6>(from);
      tiles.load<7>(from + kTile);
    };
    const auto multiply = [&] {
      tiles.multiply<0, 4, 6>();
      tiles.multiply<1, 4, 7>();
      tiles.multiply<2, 5, 6>();
      tiles.multiply<3, 5, 7>();
    };
    if constexpr (kParts == 1) {
      load_a(0);
      load_b(0);
      multiply();
    } else {
      // Each part of the pixels is loaded once: three of four rows of a tile lie in two cache lines and take two loads.
      load_a(2);
      load_b(0);
      multiply();
      load_a(1);
      multiply();
      load_b(1);
      multiply();
      load_a(0);
      multiply();
      load_b(0);
      multiply();
      load_b(2);
      multiply();
    }
  }
  tiles.store<0>(g.c[0], g.stride);
  tiles.store<1>(g.c[0] + 16, g.stride);
  tiles.store<2>(g.c[1], g.stride);
  tiles.store<3>(g.c[1] + 16, g.stride);
}

void finish(float* sums, const float* shift, int64_t pixels, int64_t channels) {
  for (int64_t pixel = 0; pixel < pixels; ++pixel, sums += channels) {
    for (int64_t c = 0; c < channels; c += kWidth) {
      const Vec value = activate(load(sums + c) + load(shift + c), Activation::relu);
      store(sums + c, bit_cast<Vec>(bit_cast<IntVec>(value) & 0x7fffffff));
    }
  }
}

// The results of ReLU, without their signs, have the order of their bits: see stem_kernels.cpp.
template <class T>
void pool(const float* const* rows, int count, int64_t width, int64_t stride, int64_t channels, void* to) {
  T* out = static_cast<T*>(to);
  for (int64_t p = 0; 2 * p < width; ++p, out += channels) {
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
      if (left >= kWidth) {
        store(out + c, bit_cast<Vec>(largest));
      } else {
        store(out + c, bit_cast<Vec>(largest), static_cast<int>(left));
      }
    }
  }
}

}  // namespace

extern const AmxStemKernels amx_stem_kernels = {begin_tiles, end_tiles, split_all<3>, split_all<1>, gemm<3>,
                                                gemm<1>,     finish,    pool<float>,  pool<bf16>};

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
