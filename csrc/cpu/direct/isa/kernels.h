// What run.cpp calls. kernels_amx.cpp provides it with the matrix unit and without (base/amx_tiles.h), and
// kernels_f32_bf16.cpp for each instruction set of vectors.
#pragma once

#include <cstdint>

#include "cpu/direct/direct.h"

namespace resnet_fused::cpu {

struct DirectGemm {
  const uint16_t* a;                  // packed input at the first pixel
  int64_t block_stride, part_stride;  // words from a block of channels, a part, to the next
  const int64_t* taps;                // words from the first pixel
  int64_t tap_count, blocks;
  int64_t pixels;     // that are asked for; the matrix unit sums all of its 32
  const uint16_t* b;  // packed weights of the panel: direct/pack.cpp
  float* c;           // sums [pixels][32 channels]
  bool add;           // to what is in c
  const char* ahead;  // weights to be read later; so many lines of 64 bytes of them are requested for each product
  int64_t ahead_lines;
};

struct DirectOutput {
  const float* c;      // sums, 32 apart
  const float* shift;  // of the panel
  const void* residual;
  void* out;
  int64_t pixel_stride, pixels;
  int channels;           // at most 32
  Activation activation;  // none or relu
};

struct DirectKernels {
  int64_t pixels;              // of a call of gemm, at most
  void (*begin)(void* saved);  // of a task: prepares this thread; saved: 64 bytes for what there was
  void (*end)(const void* saved);
  // `pixels` pixels of `channels` channels, `from_stride` values apart, into blocks of a line and their parts.
  void (*pack)(const void* from, int64_t from_stride, int64_t pixels, int64_t channels, uint16_t* to,
               int64_t block_stride, int64_t part_stride);
  void (*gemm)(const DirectGemm&);
  void (*output)(const DirectOutput&);
};

const DirectKernels& direct_kernels(DirectFormat format);  // of the instruction set in use

}  // namespace resnet_fused::cpu
