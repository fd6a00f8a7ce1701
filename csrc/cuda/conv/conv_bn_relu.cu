// Host side of conv_bn_relu.
#include "cuda/base/clusters.h"
#include "cuda/conv/args.cuh"
#include "cuda/conv/choice.h"
#include "cuda/conv/tile.cuh"

namespace resnet_fused::cuda {

template <class Math>
void launch_conv(const ConvPlan& plan, const ConvArgs& args, void* stream);  // instances/conv_bn_relu_<math>.cu
template <class Math>
void launch_conv_cluster(const ConvPlan& plan, const ConvArgs& args, bool early_weights, void* stream);

size_t conv_bn_relu_scratch(DType dtype, Convolution conv, bool allow_tf32, ConvChoice choice) {
  if (choice.cluster) require_clusters("conv_bn_relu");
  // The pointers are not known yet, so the scratch suffices for the aligned and for the unaligned plan.
  const size_t aligned = conv_plan_chosen("conv_bn_relu", choice, dtype, conv, allow_tf32, true).scratch;
  const size_t unaligned = conv_plan(dtype, conv, allow_tf32, false).scratch;
  return aligned > unaligned ? aligned : unaligned;
}

int conv_choices(DType dtype, Convolution conv, bool allow_tf32, int most_splits, bool clusters, ConvChoice* to,
                 int room) {
  std::vector<ConvChoice> found = conv_choices_of(dtype, conv, allow_tf32, most_splits);
  if (clusters && cluster_refusal(capability("conv_choices")).empty()) {
    for (const ConvChoice& choice : conv_cluster_choices_of(dtype, conv, allow_tf32)) found.push_back(choice);
  }
  int count = 0;
  for (const ConvChoice& choice : found) {
    if (count < room) to[count++] = choice;
  }
  return count;
}

template <class Math>
void conv_launch(const ConvPlan& plan, const ConvArgs& args, bool early_weights, void* stream) {
  if (plan.cluster) return launch_conv_cluster<Math>(plan, args, early_weights, stream);
  launch_conv<Math>(plan, args, stream);
}

void conv_bn_relu_planned(const ConvPlan& plan, DType dtype, const ConvTensors& at, Convolution conv, bool allow_tf32,
                          bool early_weights, void* scratch, void* stream) {
  conv_launches(plan, dtype, at, conv, scratch, [&](const ConvArgs& args, int64_t) {
    switch (conv_math(dtype, allow_tf32)) {
      case ConvMath::f16:
        return conv_launch<MathF16>(plan, args, early_weights, stream);
      case ConvMath::bf16:
        return conv_launch<MathBF16>(plan, args, early_weights, stream);
      case ConvMath::tf32:
        return conv_launch<MathTF32>(plan, args, early_weights, stream);
      case ConvMath::f32:
        return conv_launch<MathF32>(plan, args, early_weights, stream);
    }
  });
}

void conv_bn_relu(DType dtype, const void* x, const void* weight, Epilogue epilogue, void* out, Convolution conv,
                  bool allow_tf32, ConvChoice choice, void* scratch, void* stream) {
  const ConvTensors at{x, weight, epilogue, out};
  const ConvPlan plan = conv_plan_chosen("conv_bn_relu", choice, dtype, conv, allow_tf32, at.aligned());
  conv_bn_relu_planned(plan, dtype, at, conv, allow_tf32, choice.early_weights, scratch, stream);
}

}  // namespace resnet_fused::cuda
