// Depthwise convolution of NHWC activations: every channel has a filter of its own. out = f(conv(x, weight) + shift),
// summed in float32 and rounded once. Square filters of 3x3 and 5x5, stride 1 or 2, any padding, no dilation.
#pragma once

#include <cstdint>

#include "cpu/base/pointwise.h"
#include "cpu/base/team.h"
#include "ops.h"

namespace resnet_fused::cpu {

struct DepthwiseShape {
  int64_t n, h, w, c, kernel, stride, padding;
  bool bf16;
  int64_t p() const { return out_size(h, kernel, stride, padding, 1); }
  int64_t q() const { return out_size(w, kernel, stride, padding, 1); }
};

// Whether there is a kernel for a filter and a stride.
constexpr bool depthwise_is_able(int64_t kernel, int64_t stride) {
  return (kernel == 3 || kernel == 5) && (stride == 1 || stride == 2);
}

// x and out: float32 or bfloat16; out must not be x. weight: [kernel, kernel, c], shift: [c], both float32. The bits of
// the result do not depend on threads, batch or position.
Loop depthwise_loop(const DepthwiseShape& shape, const void* x, const float* weight, const float* shift,
                    Pointwise function, void* out, int slots);

}  // namespace resnet_fused::cpu
