// The stem of a ResNet on the matrix unit: max_pool2d(relu(conv(x, weight) + shift), 3, stride 2, padding 1) for at
// most four input channels and kernels at most eight wide. Only four rows of the map before the pool ever exist.
//
// Pixels are stored four values apart, so that 8 of them are the 64 bytes of a tile's row and the next output pixel's
// are `stride` pixels further: a kernel row is one product, without a copy for each pixel.
#pragma once

#include <cstdint>

#include "cpu/stem/stem.h"

namespace resnet_fused::cpu {

struct AmxStemShape : StemShape {
  int parts;  // 3: float32 as three bfloat16; 1: rounded to bfloat16
};

constexpr int64_t kAmxStemChannels = 4, kAmxStemWidth = 8;  // of a row of a tile

// packed: values; workspace: bytes.
int64_t amx_stem_packed_size(const AmxStemShape& shape);
int64_t amx_stem_workspace_size(const AmxStemShape& shape, int tasks);

// weight: [k, c, kernel, kernel] contiguous float32; with one part it is rounded.
void amx_stem_pack(const AmxStemShape& shape, const float* weight, uint16_t* packed);

// x: element (n, c, y, x) at n * strides[0] + c * strides[1] + y * strides[2] + x * strides[3], float32 or, with one
// part, bfloat16 if x_bf16. out: NHWC, float32 (three parts) or bfloat16. Every output is the same for any number of
// tasks; a NaN comes out where torch has it, an infinity as in direct_run (direct.h). workspace: aligned to 64 bytes.
void amx_stem_run(const AmxStemShape& shape, const void* x, bool x_bf16, const int64_t (&strides)[4],
                  const uint16_t* packed, const float* shift, void* out, int tasks, void* workspace);

}  // namespace resnet_fused::cpu
