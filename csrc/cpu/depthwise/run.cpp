// The loop over the rows of a depthwise convolution.
#include <algorithm>

#include "cpu/base/isa.h"
#include "cpu/depthwise/depthwise.h"
#include "cpu/depthwise/isa/kernels.h"

namespace resnet_fused::cpu {
RESNET_FUSED_PER_ISA_BF16(extern const DepthwiseKernels depthwise_kernels[2];)

Loop depthwise_loop(const DepthwiseShape& shape, const void* x, const float* weight, const float* shift,
                    Pointwise function, void* out, int slots) {
  const auto run = RESNET_FUSED_BEST_BF16(depthwise_kernels)[shape.bf16].rows[shape.kernel == 5][shape.stride == 2];
  return ranges(shape.n * shape.p(), slots, [=](int64_t begin, int64_t end) {
    const int64_t item = shape.bf16 ? 2 : 4, height = shape.p();
    while (begin < end) {
      const int64_t image = begin / height, first = begin % height, last = std::min(height, first + end - begin);
      const char* from = static_cast<const char*>(x) + image * shape.h * shape.w * shape.c * item;
      char* to = static_cast<char*>(out) + image * height * shape.q() * shape.c * item;
      run({&shape, from, weight, shift, function, to, first, last});
      begin += last - first;
    }
  });
}

}  // namespace resnet_fused::cpu
