// What stem.cpp calls; stem_kernels.cpp provides it for each instruction set.
#pragma once

#include <cstdint>

namespace resnet_fused::cpu {

constexpr int64_t kStemPanel = 32;  // output channels: two 512-bit vectors
constexpr int kStemMaxPixels = 14;  // 14 x 2 sums + 2 weights + 1 broadcast: 31 of AVX-512's 32 registers

// `pixels` neighbouring outputs of one panel: relu(sum + shift), the sign bits cleared.
struct StemRow {
  const float* const* rows;  // `kernel` input rows, interleaved channels, from the first pixel's first tap on
  const float* weights;      // [kernel][taps][32]
  const float* shift;        // `channels` <= 32 of them
  float* out;                // stride out_stride a pixel
  int64_t kernel, taps, step, channels, out_stride;  // taps: kernel * c, of a row; step: floats from pixel to pixel
};

struct StemKernels {
  int max_pixels;
  void (*row[kStemMaxPixels + 1])(const StemRow& row, int64_t offset);  // by pixels; offset: into rows, in floats
  // out[p][0..channels) = the largest of `count` rows' pixels 2p - 1, 2p, 2p + 1 where they exist.
  // In float32, and rounded to bfloat16.
  using Pool = void (*)(const float* const* rows, int count, int64_t width, int64_t stride, int64_t channels,
                        void* out);
  Pool pool, pool_bf16;
};

}  // namespace resnet_fused::cpu
