// The stem of a ResNet on the matrix unit: max_pool2d(relu(conv(x, weight) + shift), 3, stride 2, padding 1) for at
// most four input channels and kernels at most eight wide. Memory holds only four rows of the map before the pool.
//
// Pixels are stored four values apart. 8 pixels are then the 64 bytes of a tile's row, and the pixels of the next
// output lie `stride` pixels further. A kernel row is therefore one product, and no pixel is copied for it.
#pragma once

#include <cstdint>

#include "cpu/stem/stem.h"

namespace resnet_fused::cpu {

struct AmxStemShape : StemShape {
  int parts;  // 3: float32 as three bfloat16; 1: rounded to bfloat16
};

constexpr int64_t kAmxStemChannels = 4, kAmxStemWidth = 8;  // of a row of a tile

// packed: in values. workspace: in bytes.
int64_t amx_stem_packed_size(const AmxStemShape& shape);
int64_t amx_stem_workspace_size(const AmxStemShape& shape, int slots);

// weight: [k, c, kernel, kernel] contiguous float32. With one part the weight is rounded to bfloat16.
void amx_stem_pack(const AmxStemShape& shape, const float* weight, uint16_t* packed);

// Adds the loop of a stem. Pointers are kept, and the rest is copied. x: element (n, c, y, x) at n * strides[0] + c *
// strides[1] + y * strides[2] + x * strides[3]. x is float32, or with one part also bfloat16 if x_bf16. out: NHWC,
// float32 (three parts) or bfloat16. Every output is the same for any number of slots. NaNs come out where torch has
// them, infinities as in direct_loops (direct.h). workspace: aligned to 64 bytes.
void amx_stem_loops(const AmxStemShape& shape, const void* x, bool x_bf16, const int64_t (&strides)[4],
                    const uint16_t* packed, const float* shift, void* out, int slots, void* workspace, Loops& loops);

}  // namespace resnet_fused::cpu
