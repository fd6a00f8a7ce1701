// Host side of the strip convolution.
#include "../hopper.h"
#include "../tensor_map.h"
#include "conv_strip.cuh"

namespace resnet_fused::cuda {

static_assert(kStripShared <= kMostShared, "the strip convolution fits a multiprocessor");

void conv_strip_planned(const StripPlan& plan, DType dtype, const void* x, const void* weight, Norm norm,
                        const void* residual, void* out, Conv conv, bool relu, void* stream) {
  constexpr const char* kOp = "conv_strip";
  const auto x_map = images_map(
      kOp, {x, dtype, conv.n, conv.h, conv.w, kStripChannels, kStripImages, kStripPixels});
  constexpr int64_t kFilter = kStripTaps * kStripChannels;
  const auto weight_map = matrix_map(kOp, {weight, dtype, kStripChannels, kFilter, 2 * kFilter, kStripChannels});
  const StripArgs args{plan, residual, out, norm, relu};
  const auto start = [&](auto kernel) {
    launch(kOp, kernel, {plan.blocks}, kStripThreads, kStripShared, stream, args, x_map, weight_map);
  };
  if (dtype == DType::f16) {
    start(conv_strip_kernel<ptx::f16>);
  } else {
    start(conv_strip_kernel<ptx::bf16>);
  }
}

}  // namespace resnet_fused::cuda
