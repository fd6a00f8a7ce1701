// Host side of conv_strip.
#include "cuda/base/launch.h"
#include "cuda/base/tensor_map.h"
#include "cuda/hopper/strip/strip.cuh"

namespace resnet_fused::cuda {

std::string conv_strip_refusal(DType dtype, Convolution conv) {
  return strip_refusal(capability("conv_strip"), dtype, conv);
}

void conv_strip_planned(const StripPlan& plan, DType dtype, const void* x, const void* weight, Epilogue epilogue,
                        void* out, Convolution conv, bool gradient, void* stream) {
  require_hopper("conv_strip");
  constexpr int64_t kFilter = kStripTaps * kStripChannels;
  const auto x_map =
      images_map("conv_strip", {x, dtype, conv.n, conv.h, conv.w, kStripChannels, kStripImages, kStripPixels});
  const auto weight_map =
      matrix_map("conv_strip", {weight, dtype, kStripChannels, kFilter, 2 * kFilter, kStripChannels});
  const StripArgs args{plan, epilogue, out, gradient};
  launch("conv_strip", dtype == DType::f16 ? conv_strip_kernel<ptx::f16> : conv_strip_kernel<ptx::bf16>, {plan.blocks},
         kStripThreads, kStripShared, stream, args, x_map, weight_map);
}

void conv_strip(DType dtype, const void* x, const void* weight, Epilogue epilogue, void* out, Convolution conv,
                bool gradient, void* stream) {
  conv_strip_planned(strip_plan(conv), dtype, x, weight, epilogue, out, conv, gradient, stream);
}

}  // namespace resnet_fused::cuda
