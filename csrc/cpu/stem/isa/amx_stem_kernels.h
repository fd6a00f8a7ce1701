// The kernels that amx_stem.cpp calls. amx_stem_kernels.cpp provides them with and without the matrix unit
// (base/amx_tiles.h).
#pragma once

#include <cstdint>

namespace resnet_fused::cpu {

// The product of 16 pixels of each of two rows of the convolution by 32 channels.
struct AmxStemGemm {
  const uint16_t* const* rows[2];             // per row: its `kernel` input rows at the first pixel
  int64_t kernel, part_stride, pixel_stride;  // values
  const uint16_t* b;                          // packed weights of the panel: [kernel][part, last first][2][16][16][2]
  float* c[2];                                // sums, `stride` floats from a pixel to the next
  int64_t stride;
};

struct AmxStemKernels {
  void (*begin)(void* saved);
  void (*end)(const void* saved);
  // Splits `values` floats (a multiple of 32) into parts. Returns whether all of these floats are finite.
  bool (*split3)(const float* from, int64_t values, uint16_t* to, int64_t part_stride);
  bool (*split1)(const float* from, int64_t values, uint16_t* to, int64_t part_stride);
  void (*gemm3)(const AmxStemGemm&);
  void (*gemm1)(const AmxStemGemm&);
  // sums = |relu(sums + shift)|. These values have the order of their bits, and every NaN is above infinity.
  void (*finish)(float* sums, const float* shift, int64_t pixels, int64_t channels);
  // Computes one row of the pool from two or three rows of `width` pixels of `stride` floats.
  void (*pool3)(const float* const* rows, int count, int64_t width, int64_t stride, int64_t channels, void* out);
  void (*pool1)(const float* const* rows, int count, int64_t width, int64_t stride, int64_t channels, void* out);
};

}  // namespace resnet_fused::cpu
