// What the ISA-specific sources of the gradient of a weight provide. The layouts are the same for every instruction
// set:
//   transformed x and grad   [channels / 16][16 points][tiles][16]   of the tiles of a block
//   sums                     [32-output panel][line of x][16 points][16][32]   of one piece of work
// Lanes and rows of channels that do not exist hold any value and are never written out.
#pragma once

#include <cstdint>

#include "cpu/winograd/isa/kernels.h"
#include "cpu/winograd/weight_gradient.h"

namespace resnet_fused::cpu {

constexpr int64_t kGradientPoints = 16;
constexpr int64_t kGradientSums = kGradientPoints * kWinogradLine * kWinogradPanel;  // of a line and a panel
constexpr int64_t kGradientTiles = 64;  // tiles whose products are one running sum; see kSumLength in gemm.h

// One tile of the gradient of the output: `height` x `width` pixels, 1 or 2 each; the others are 0. Strides are in
// floats.
struct GradientTile {
  const float* pixel;
  int64_t row_stride, channels;
  int height, width;
};

// sums[row][0..31] (+)= sum over tiles t of v[t][row] * m[t][0..31] for the 16 rows of a line. m has two lines.
struct GradientGemm {
  const float *v, *m;
  float* sums;
  int64_t tiles, m_line_stride;
  bool accumulate;  // add to sums instead of overwriting them
};

struct WeightGradientKernels {
  // A g A^T of all channels of a tile. m: line 0 of the tile for point 0.
  void (*gradient)(const GradientTile& from, float* m, int64_t line_stride, int64_t point_stride);
  void (*gemm)(const GradientGemm& gemm);
  // G^T s G of `channels` <= 16 rows and `filters` <= 32 lanes of s, the sum of `parts` sums that lie `part_stride`
  // floats apart. Returns whether all values were finite.
  bool (*finish)(const float* sums, int64_t parts, int64_t part_stride, int64_t channels, int64_t filters,
                 const WeightGradient& to);
};

}  // namespace resnet_fused::cpu
