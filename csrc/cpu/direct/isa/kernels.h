// The kernels that run.cpp calls. kernels_amx.cpp provides them with and without the matrix unit (base/amx_tiles.h),
// kernels_f32_bf16.cpp for each instruction set of vectors.
#pragma once

#include <cstdint>

#include "cpu/direct/direct.h"

namespace resnet_fused::cpu {

struct DirectGemm {
  const uint16_t* a;                  // packed input at the first pixel
  int64_t block_stride, part_stride;  // words from a block of channels to the next, from a part to the next
  const int64_t* taps;                // offsets in words from the first pixel
  int64_t tap_count, blocks;
  // On vectors: values of 32 bits that the last block's lines hold, at most 16, and filters of the panel, at most 32.
  int64_t last, filters;
  int64_t pixels;     // pixels that are wanted; the matrix unit always sums 32
  const uint16_t* b;  // packed weights of the panel: direct/pack.cpp
  float* c;           // sums [pixels][32 channels]
  bool add;           // whether to add to the values of c
  const char* ahead;  // weights of later calls; each product prefetches `ahead_lines` lines of 64 bytes of them
  int64_t ahead_lines;
};

struct DirectOutput {
  const float* c;      // sums, 32 floats from a pixel to the next
  const float* shift;  // shift of the panel
  const void* residual;
  void* out;
  int64_t pixel_stride, pixels;
  int channels;  // at most 32
  Pointwise activation;
};

// Pixels of a 1x1 convolution of stride 1 that is summed from the map itself, for the filters of a panel.
struct DirectInPlace {
  const void* x;
  const uint16_t* b;   // packed weights of the panel
  const float* shift;  // of the panel
  const void* residual;
  void* out;
  int64_t c, k, pixels, filters;  // c and k: channels of x and of out
  Pointwise activation;
};

struct DirectKernels {
  int64_t pixels;              // at most, of a call of gemm
  void (*begin)(void* saved);  // prepares this thread for a piece; saved: 64 bytes for the thread's previous state
  void (*end)(const void* saved);
  // Copies `pixels` pixels of `channels` channels, `from_stride` values apart, to blocks of a line, split into their
  // parts.
  void (*pack)(const void* from, int64_t from_stride, int64_t pixels, int64_t channels, uint16_t* to,
               int64_t block_stride, int64_t part_stride);
  void (*gemm)(const DirectGemm&);
  void (*output)(const DirectOutput&);
  void (*in_place)(const DirectInPlace&);  // on vectors
};

const DirectKernels& direct_kernels(DirectFormat format);  // kernels of the instruction set in use

}  // namespace resnet_fused::cpu
