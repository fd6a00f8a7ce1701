// Host side of conv_bn_relu.
#include "conv_args.cuh"
#include "conv_choice.h"
#include "conv_tile.cuh"

namespace resnet_fused::cuda {

template <class Math>
void launch_conv(const ConvPlan& plan, const ConvArgs& args, void* stream);  // conv_bn_relu_<math>.cu

size_t conv_bn_relu_scratch(DType dtype, Conv conv, bool allow_tf32, ConvChoice choice) {
  // The pointers are not known yet: room for either plan.
  const size_t aligned = conv_plan_chosen("conv_bn_relu", choice, dtype, conv, allow_tf32, true).scratch;
  const size_t unaligned = conv_plan(dtype, conv, allow_tf32, false).scratch;
  return aligned > unaligned ? aligned : unaligned;
}

int conv_choices(DType dtype, Conv conv, bool allow_tf32, int most_splits, ConvChoice* to, int room) {
  int count = 0;
  for (const ConvChoice& choice : conv_choices_of(dtype, conv, allow_tf32, most_splits)) {
    if (count < room) to[count++] = choice;
  }
  return count;
}

void conv_bn_relu_planned(const ConvPlan& plan, DType dtype, const ConvTensors& at, Norm norm, Conv conv, bool relu,
                          bool allow_tf32, void* scratch, void* stream) {
  conv_launches(plan, dtype, at, norm, conv, relu, scratch, [&](const ConvArgs& args, int64_t) {
    switch (conv_math(dtype, allow_tf32)) {
      case ConvMath::f16:
        return launch_conv<MathF16>(plan, args, stream);
      case ConvMath::bf16:
        return launch_conv<MathBF16>(plan, args, stream);
      case ConvMath::tf32:
        return launch_conv<MathTF32>(plan, args, stream);
      case ConvMath::f32:
        return launch_conv<MathF32>(plan, args, stream);
    }
  });
}

void conv_bn_relu(DType dtype, const void* x, const void* weight, Norm norm, const void* residual, void* out, Conv conv,
                  bool relu, bool allow_tf32, ConvChoice choice, void* scratch, void* stream) {
  const ConvTensors at{x, weight, residual, out};
  const ConvPlan plan = conv_plan_chosen("conv_bn_relu", choice, dtype, conv, allow_tf32, at.aligned());
  conv_bn_relu_planned(plan, dtype, at, norm, conv, relu, allow_tf32, scratch, stream);
}

}  // namespace resnet_fused::cuda
