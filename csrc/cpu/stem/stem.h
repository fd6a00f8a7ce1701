// The stem of a ResNet with few input channels: max_pool2d(relu(conv(x, weight * scale) + shift), 3, stride 2, padding
// 1). It is a direct sum in float32. Memory holds only three rows of the map before the pool.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/base/team.h"
#include "ops.h"

namespace resnet_fused::cpu {

constexpr int64_t kStemKernel = 16;  // at most

// The convolution and the pool. Kernel, stride and padding of the convolution are the same on both axes.
struct StemShape : Convolution {
  int64_t kernel() const { return r; }
  int64_t stride() const { return stride_h; }
  int64_t padding() const { return pad_h; }
  int64_t pooled_h() const { return pooled_size(p); }
  int64_t pooled_w() const { return pooled_size(q); }
};

// The shape of a stem without dilation.
inline StemShape stem_shape(int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t kernel, int64_t stride,
                            int64_t padding) {
  return {{n, h, w, c, k, kernel, kernel, 1, stride, stride, padding, padding}};
}

// Sizes in floats. packed: [k / 32][kernel][kernel * c][32]; absent output channels are 0.
int64_t stem_packed_size(int64_t k, int64_t c, int64_t kernel);
int64_t stem_workspace_size(const StemShape& shape, int slots);

// weight: [k, c, kernel, kernel] contiguous; scale: [k] or nullptr.
void stem_pack(const float* weight, const float* scale, int64_t k, int64_t c, int64_t kernel, float* packed);

// Adds the loop of a stem. Pointers are kept, and the rest is copied. x: element (n, c, y, x) at n * strides[0] + c *
// strides[1] + y * strides[2] + x * strides[3]; bfloat16 if x_bf16, else float32. out: NHWC, float32. If out_bf16, x
// and out are rounded to bfloat16. Every output is the same for any number of slots. workspace: aligned to 64 bytes.
void stem_loops(const StemShape& shape, const void* x, bool x_bf16, const int64_t (&strides)[4], const float* packed,
                const float* shift, void* out, bool out_bf16, int slots, float* workspace, Loops& loops);

// Pieces of a stem with `rows` pooled rows. A piece computes a row of the convolution that the previous piece has too.
inline int64_t stem_pieces(int64_t rows, int slots) {
  constexpr int64_t kRows = 14, kPerSlot = 4;
  const int64_t per_slot = (rows + kRows * slots - 1) / (kRows * slots);
  return std::min(rows, slots * std::min(per_slot, kPerSlot));
}

}  // namespace resnet_fused::cpu
