// Host side of conv_bn_relu_pair.
#include "cuda/conv/args.cuh"
#include "cuda/conv/pair_plan.h"
#include "cuda/conv/tile.cuh"

namespace resnet_fused::cuda {

template <class Math>
void launch_conv_pair(const ConvPlan& plan, const ConvArgs& first, const ConvArgs& second, void* stream);

size_t conv_bn_relu_pair_scratch(DType dtype, Convolution first, Convolution second, bool allow_tf32,
                                 ConvChoice choice) {
  // The pointers are not known yet, so the scratch suffices for one launch and for either of two launches.
  const size_t together = conv_pair_plan(dtype, first, second, allow_tf32, true, choice).first.scratch;
  const size_t a = conv_bn_relu_scratch(dtype, first, allow_tf32, {});
  const size_t b = conv_bn_relu_scratch(dtype, second, allow_tf32, {});
  return std::max({together, a, b});
}

void conv_bn_relu_pair(DType dtype, const void* x, const ConvSide& first, const ConvSide& second, bool allow_tf32,
                       ConvChoice choice, void* scratch, void* stream) {
  const ConvTensors a{x, first.weight, first.epilogue, first.out}, b{x, second.weight, second.epilogue, second.out};
  const bool aligned = a.aligned() && b.aligned();
  const ConvPairPlan plan = conv_pair_plan(dtype, first.conv, second.conv, allow_tf32, aligned, choice);
  if (!plan.together) {
    for (const ConvSide* side : {&first, &second}) {
      conv_bn_relu(dtype, x, side->weight, side->epilogue, side->out, side->conv, allow_tf32, {}, scratch, stream);
    }
    return;
  }
  const ConvArgs args = conv_args(plan.first, dtype, a, first.conv, first.conv.n, scratch);
  const ConvArgs with = conv_args(plan.second, dtype, b, second.conv, second.conv.n, nullptr);
  switch (conv_math(dtype, allow_tf32)) {
    case ConvMath::f16:
      return launch_conv_pair<MathF16>(plan.first, args, with, stream);
    case ConvMath::bf16:
      return launch_conv_pair<MathBF16>(plan.first, args, with, stream);
    case ConvMath::tf32:
      return launch_conv_pair<MathTF32>(plan.first, args, with, stream);
    case ConvMath::f32:
      return launch_conv_pair<MathF32>(plan.first, args, with, stream);
  }
}

}  // namespace resnet_fused::cuda
