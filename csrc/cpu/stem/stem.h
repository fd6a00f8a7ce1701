// The stem of a ResNet, for few input channels: max_pool2d(relu(conv(x, weight * scale) + shift), 3, stride 2,
// padding 1). Directly, summed in float32; only three rows of the map before the pool ever exist.
#pragma once

#include <cstdint>

#include "ops.h"

namespace resnet_fused::cpu {

constexpr int64_t kStemKernel = 16;  // at most

// The convolution, whose kernel, stride and padding are those of both axes, and the pool.
struct StemShape : Convolution {
  int64_t kernel() const { return r; }
  int64_t stride() const { return stride_h; }
  int64_t padding() const { return pad_h; }
  int64_t pooled_h() const { return pooled_size(p); }
  int64_t pooled_w() const { return pooled_size(q); }
};

// Without dilation.
inline StemShape stem_shape(int64_t n, int64_t h, int64_t w, int64_t c, int64_t k, int64_t kernel, int64_t stride,
                            int64_t padding) {
  return {{n, h, w, c, k, kernel, kernel, 1, stride, stride, padding, padding}};
}

// Floats. packed: [k / 32][kernel][kernel * c][32], absent channels 0.
int64_t stem_packed_size(int64_t k, int64_t c, int64_t kernel);
int64_t stem_workspace_size(const StemShape& shape, int tasks);

// weight: [k, c, kernel, kernel] contiguous; scale: [k] or nullptr.
void stem_pack(const float* weight, const float* scale, int64_t k, int64_t c, int64_t kernel, float* packed);

// x: element (n, c, y, x) at n * strides[0] + c * strides[1] + y * strides[2] + x * strides[3], float32 or, if x_bf16,
// bfloat16. out: NHWC, float32 or, if out_bf16, rounded to bfloat16, and x with it. Every output is the same for any
// number of tasks. workspace: aligned to 64 bytes.
void stem_run(const StemShape& shape, const void* x, bool x_bf16, const int64_t (&strides)[4], const float* packed,
              const float* shift, void* out, bool out_bf16, int tasks, float* workspace);

}  // namespace resnet_fused::cpu
