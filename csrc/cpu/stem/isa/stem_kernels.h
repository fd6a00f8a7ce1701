// The kernels that stem.cpp calls. stem_kernels.cpp provides them for each instruction set.
#pragma once

#include <cstdint>

namespace resnet_fused::cpu {

constexpr int64_t kStemPanel = 32;  // output channels: two 512-bit vectors
constexpr int kStemMaxPixels = 14;  // 14 x 2 sums, 2 weights and 1 broadcast take 31 of AVX-512's 32 registers

// `pixels` neighbouring outputs of one panel: relu(sum + shift) with cleared sign bits.
struct StemRow {
  const float* const* rows;  // `kernel` input rows, interleaved channels, from the first pixel's first tap on
  const float* weights;      // [kernel][taps][32]
  const float* shift;        // `channels` <= 32 values
  float* out;                // out_stride floats from a pixel to the next
  int64_t kernel, taps, step, channels, out_stride;  // taps: kernel * c, of a row; step: floats from pixel to pixel
};

struct StemKernels {
  int max_pixels;
  // index: number of pixels; offset: into rows, in floats
  void (*row[kStemMaxPixels + 1])(const StemRow& row, int64_t offset);
  // out[p][0..channels) is the largest of pixels 2p - 1, 2p, 2p + 1 of `count` rows, where they exist. It is float32,
  // or rounded to bfloat16.
  using Pool = void (*)(const float* const* rows, int count, int64_t width, int64_t stride, int64_t channels,
                        void* out);
  Pool pool, pool_bf16;
};

}  // namespace resnet_fused::cpu
