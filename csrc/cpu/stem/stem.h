// The stem of a ResNet, for few input channels: max_pool2d(relu(conv(x, weight * scale) + shift), 3, stride 2,
// padding 1). Directly, summed in float32; only three rows of the map before the pool ever exist.
#pragma once

#include <cstdint>

namespace resnet_fused::cpu {

constexpr int64_t kStemKernel = 16;  // at most

struct StemShape {
  int64_t n, h, w, c, k;
  int64_t kernel, stride, padding;  // of the convolution, both axes
  int64_t conv_h() const { return (h + 2 * padding - kernel) / stride + 1; }
  int64_t conv_w() const { return (w + 2 * padding - kernel) / stride + 1; }
  int64_t out_h() const { return (conv_h() - 1) / 2 + 1; }
  int64_t out_w() const { return (conv_w() - 1) / 2 + 1; }
};

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
