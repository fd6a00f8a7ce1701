// The kernels that kernels_f32.cpp and kernels_bf16.cpp provide. They are compiled once per instruction set. The loops
// around them are written once, in run.cpp.
//
// With P = (m + 2)^2 points, all layouts are the same for every instruction set:
//   points          [k / 32][P][c][32]          transformed weights, panel by panel; absent output channels are 0
//   taps            [k / 32][c][9][32]          weights before the transform: less to read, more to compute
//   transformed x   [c / 16][P][tiles][16]      of the tiles of a block
//   products        [tile][panel][P][32]        private to a slot
// In bfloat16, a pair of channels takes the place of each float of points and of transformed x.
#pragma once

#include <cstdint>

#include "cpu/winograd/winograd.h"

namespace resnet_fused::cpu {

constexpr int64_t kWinogradPanel = 32;  // output channels: two 512-bit vectors
constexpr int64_t kWinogradLine = 16;   // input channels, or pairs of them, stored together: a cache line
constexpr int kWinogradMaxRows = 14;    // tiles of one micro-kernel call in the instruction set with the most registers

// The input of one tile: the pixels from (y0, x0) on, two more per axis than the tile has outputs. Pixels outside h x w
// are 0.
struct WinogradInput {
  const void* image;
  int64_t h, w, c, y0, x0;
};

// `height` x `width` output pixels of `channels` <= 32 channels. Strides are in values.
struct WinogradOutput {
  void* out;
  const void* residual;  // nullptr is possible; may be out
  const float* scale;    // nullptr is possible
  const float* shift;
  int64_t row_stride, pixel_stride;
  int height, width, channels;
  Activation activation;  // none or relu
};

// products[r][0..31] (+)= sum over c of v[c / 16][r][c % 16] * u[c][0..31] for each tile r.
struct WinogradGemm {
  const float *v, *u;
  float* products;
  int64_t c, line_stride, product_stride;
  bool accumulate;     // add to products instead of overwriting them
  const char* ahead;   // memory that will be read soon; the kernel prefetches it into L2
  int64_t ahead_step;  // bytes that the kernel prefetches per channel
};

// F(2x2) has tiles of 2 x 2 outputs. F(4x4) has tiles of h x w, each 4 or 3, at [4 - h][4 - w].
struct WinogradTransforms {
  // Transforms channels c_begin (a multiple of 16) to c_end of one tile. v: line 0 of the tile for point 0.
  using Input = void (*)(const WinogradInput& in, int64_t c_begin, int64_t c_end, float* v, int64_t line_stride,
                         int64_t point_stride);
  // Returns whether all values were finite before the activation.
  using Output = bool (*)(const float* products, const WinogradOutput& to);
  Input input2, input4[2][2];
  Output output2, output4[2][2];
};

struct WinogradKernels {
  // Transforms filter taps [c][9][32] to points [P][c][32] that lie `point_stride` floats apart.
  using Expand = void (*)(const float* taps, int64_t c, float* u, int64_t point_stride);
  // Copies `filters` <= 32 filters to taps [c][9][32]. Absent filters are 0.
  using Gather = void (*)(const WinogradFilters& from, int64_t filters, int64_t c, float* taps);
  using Gemm = void (*)(const WinogradGemm& gemm);

  int max_rows;
  Gemm gemm[kWinogradMaxRows + 1];  // index: number of tiles; [0] is unused
  WinogradTransforms transforms;
  Gather gather;
  Expand expand2, expand4;
};

const WinogradKernels& winograd_kernels(DType dtype);  // kernels of the instruction set in use

// Floats of the packed weights of one panel.
int64_t winograd_panel_size(const WinogradShape& shape, WinogradWeights weights);

}  // namespace resnet_fused::cpu
