// Host side of conv_strip.
#include "cuda/base/launch.h"
#include "cuda/base/tensor_map.h"
#include "cuda/hopper/strip/strip.cuh"

namespace resnet_fused::cuda {

std::string conv_strip_refusal(DType dtype, Conv conv) { return strip_refusal(capability("conv_strip"), dtype, conv); }

void conv_strip_planned(const StripPlan& plan, DType dtype, const void* x, const void* weight, Norm norm,
                        const void* residual, void* out, Conv conv, bool gradient, bool relu, void* stream) {
  require_hopper("conv_strip");
  constexpr int64_t kFilter = kStripTaps * kStripChannels;
  const auto x_map =
      images_map("conv_strip", {x, dtype, conv.n, conv.h, conv.w, kStripChannels, kStripImages, kStripPixels});
  const auto weight_map =
      matrix_map("conv_strip", {weight, dtype, kStripChannels, kFilter, 2 * kFilter, kStripChannels});
  const StripArgs args{plan, residual, out, norm, gradient, relu};
  launch("conv_strip", dtype == DType::f16 ? conv_strip_kernel<ptx::f16> : conv_strip_kernel<ptx::bf16>, {plan.blocks},
         kStripThreads, kStripShared, stream, args, x_map, weight_map);
}

void conv_strip(DType dtype, const void* x, const void* weight, Norm norm, const void* residual, void* out, Conv conv,
                bool gradient, bool relu, void* stream) {
  conv_strip_planned(strip_plan(conv), dtype, x, weight, norm, residual, out, conv, gradient, relu, stream);
}

}  // namespace resnet_fused::cuda
