// Host side of conv_bn_relu.
#include "conv_args.cuh"
#include "conv_tile.cuh"

namespace resnet_fused::cuda {

template <class Math>
void launch_conv(const ConvPlan& plan, const ConvArgs& args, void* stream);  // conv_bn_relu_<math>.cu

size_t conv_bn_relu_scratch(DType dtype, Conv conv, bool allow_tf32) {
  // The pointers are not known yet: room for either plan.
  const size_t aligned = conv_plan(dtype, conv, allow_tf32, true).scratch;
  const size_t unaligned = conv_plan(dtype, conv, allow_tf32, false).scratch;
  return aligned > unaligned ? aligned : unaligned;
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
                  bool relu, bool allow_tf32, void* scratch, void* stream) {
  const ConvTensors at{x, weight, residual, out};
  const ConvPlan plan = conv_plan(dtype, conv, allow_tf32, at.aligned());
  conv_bn_relu_planned(plan, dtype, at, norm, conv, relu, allow_tf32, scratch, stream);
}

}  // namespace resnet_fused::cuda
