// What an instruction set provides (winograd_kernels.cpp, compiled for each); the loops around it are winograd.cpp, written once.
//
// With P = (m + 2)^2 points, all layouts are the same for every instruction set:
//   packed weights  [k / 32][P][c][32]          sequential for a panel of 32 output channels; absent channels are 0
//   transformed x   [P][c / 16][rows][16]       of `rows` tiles: 64-byte lines in the order in which gemm reads them
//   products        [tile][panel][P][32]        private to a task
#pragma once

#include <cstdint>

namespace resnet_fused::cpu {

constexpr int64_t kWinogradPanel = 32;  // output channels: two 512-bit vectors
constexpr int64_t kWinogradLine = 16;   // input channels stored together: a cache line
constexpr int kWinogradMaxRows = 14;    // of one micro-kernel call, in the instruction set with the most registers

// The input pixels (y0 .. y0 + m + 1, x0 .. x0 + m + 1) of one tile; those outside h x w are 0.
struct WinogradInput {
  const float* image;
  int64_t h, w, c, y0, x0;
};

// `height` x `width` output pixels of `channels` <= 32 channels; the strides are in floats.
struct WinogradOutput {
  float* out;
  const float* residual;  // or nullptr; may be out
  const float* shift;
  int64_t row_stride, pixel_stride;
  int height, width, channels;
  bool relu;
};

struct WinogradKernels {
  // Channels c_begin (a multiple of 16) to c_end of one tile; v: its line 0 for point 0.
  using Input = void (*)(const WinogradInput& in, int64_t c_begin, int64_t c_end, float* v, int64_t line_stride,
                         int64_t point_stride);
  // products[r][0..31] = sum over c of v[c / 16][r][c % 16] * u[c][0..31] for `rows` tiles r.
  using Gemm = void (*)(const float* v, const float* u, int64_t c, float* products, int64_t row_stride);
  using Output = void (*)(const float* products, const WinogradOutput& to);

  int max_rows;
  Gemm gemm[kWinogradMaxRows + 1];  // by rows; [0] is unused
  Input input2, input4;
  Output output2, output4;
};

}  // namespace resnet_fused::cpu
