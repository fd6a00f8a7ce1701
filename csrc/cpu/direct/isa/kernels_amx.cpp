// This file is compiled with the matrix unit (amx) and without it (portable), as its name says (csrc/README.md).
#include "cpu/base/amx_split.h"
#include "cpu/base/amx_tiles.h"
#include "cpu/direct/direct.h"
#include "cpu/direct/isa/kernels.h"
#include "cpu/direct/isa/lines.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {
namespace {

static_assert(kSplitFloats == kDirectLine, "split() fills a line");

void pack3(const void* from, int64_t from_stride, int64_t pixels, int64_t channels, uint16_t* to, int64_t block_stride,
           int64_t part_stride) {
  for (int64_t pixel = 0; pixel < pixels; ++pixel, to += kDirectLine) {
    const float* values = static_cast<const float*>(from) + pixel * from_stride;
    int64_t c = 0;
    uint16_t* block = to;
    for (; c + kDirectLine <= channels; c += kDirectLine, block += block_stride)
      split<3>(values + c, block, part_stride);
    if (c == channels) continue;
    float last[kDirectLine] = {};
    std::memcpy(last, values + c, (channels - c) * sizeof(float));
    split<3>(last, block, part_stride);
  }
}

constexpr int64_t kTile = 16 * 32;  // values

// Registers 0 to 3 hold the sums of 2 x 2 tiles, 4 and 5 hold pixels, 6 and 7 hold weights.
inline void load_a(Tiles& tiles, const uint16_t* a) {
  tiles.load<4>(a);
  tiles.load<5>(a + kTile);
}
inline void load_b(Tiles& tiles, const uint16_t* b) {
  tiles.load<6>(b);
  tiles.load<7>(b + kTile);
}
inline void multiply_tiles(Tiles& tiles) {
  tiles.multiply<0, 4, 6>();
  tiles.multiply<1, 4, 7>();
  tiles.multiply<2, 5, 6>();
  tiles.multiply<3, 5, 7>();
}

template <int kParts>
void gemm(const DirectGemm& g) {
  Tiles tiles;
  float *c1 = g.c + 16, *c2 = g.c + 16 * kDirectPanel, *c3 = c2 + 16;
  if (g.add) {
    tiles.load<0>(g.c, kDirectPanel);
    tiles.load<1>(c1, kDirectPanel);
    tiles.load<2>(c2, kDirectPanel);
    tiles.load<3>(c3, kDirectPanel);
  } else {
    tiles.zero<0>();
    tiles.zero<1>();
    tiles.zero<2>();
    tiles.zero<3>();
  }
  const uint16_t* b = g.b;
  const char* ahead = g.ahead;
  // Each step prefetches a few lines. 96 lines at once cost a fifth of the products' speed; a few lines per step cost
  // nothing.
  const auto multiply = [&] {
    for (const char* end = ahead + g.ahead_lines * 64; ahead < end; ahead += 64) __builtin_prefetch(ahead, 0, 2);
    multiply_tiles(tiles);
  };
  for (int64_t block = 0; block < g.blocks; ++block) {
    const uint16_t* pixels = g.a + block * g.block_stride;
    for (int64_t tap = 0; tap < g.tap_count; ++tap, b += kParts * 2 * kTile) {
      const uint16_t* a = pixels + g.taps[tap];
      if constexpr (kParts == 1) {
        load_a(tiles, a);
        load_b(tiles, b);
        multiply_tiles(tiles);
      } else {
        // Parts (0, 2) (0, 1) (1, 1) (1, 0) (2, 0) (0, 0): from each product to the next, one of the two operands stays
        // loaded.
        const uint16_t *a1 = a + g.part_stride, *a2 = a1 + g.part_stride, *b1 = b + 2 * kTile, *b0 = b1 + 2 * kTile;
        load_a(tiles, a);
        load_b(tiles, b);
        multiply();
        load_b(tiles, b1);
        multiply();
        load_a(tiles, a1);
        multiply();
        load_b(tiles, b0);
        multiply();
        load_a(tiles, a2);
        multiply();
        load_a(tiles, a);
        multiply();
      }
    }
  }
  tiles.store<0>(g.c, kDirectPanel);
  tiles.store<1>(c1, kDirectPanel);
  tiles.store<2>(c2, kDirectPanel);
  tiles.store<3>(c3, kDirectPanel);
}

}  // namespace

extern const DirectKernels amx_kernels[2] = {
    // for float32 and for bfloat16
    {32, begin_tiles, end_tiles, pack3, gemm<3>, direct_output<float>, nullptr},
    {32, begin_tiles, end_tiles, pack_lines<uint16_t>, gemm<1>, direct_output<bf16>, nullptr}};

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
