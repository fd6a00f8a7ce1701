// Host side of conv_stats.
#include "cuda/base/launch.h"
#include "cuda/conv/args.cuh"
#include "cuda/conv/choice.h"
#include "cuda/conv/stats.cuh"
#include "cuda/conv/stats_merge.cuh"

namespace resnet_fused::cuda {

template <class Math>
void launch_conv_stats(const ConvPlan& plan, const ConvArgs& args, const MomentsBuffer& moments,
                       void* stream);  // instances/stats_<math>.cu

namespace {

int64_t chunks_of(const ConvPlan& plan, const Convolution& conv) {
  const int64_t full = conv.n / plan.images, rest = conv.n % plan.images;
  return full * plan.tiles_m + ceil_div(rest * conv.p * conv.q, shape_of(plan.tile).m);
}

}  // namespace

size_t conv_stats_scratch(DType dtype, Convolution conv, bool allow_tf32, ConvChoice choice) {
  const int64_t aligned = chunks_of(conv_plan_chosen("conv_stats", choice, dtype, conv, allow_tf32, true, 1), conv);
  const int64_t unaligned = chunks_of(conv_plan(dtype, conv, allow_tf32, false, 1), conv);
  return sizeof(float) * TileMoments::kWords * conv.k * conv.groups * (aligned > unaligned ? aligned : unaligned);
}

void conv_stats_planned(const ConvPlan& plan, DType dtype, const ConvTensors& at, Convolution conv, float* mean,
                        float* invstd, MutableChannels running_mean, MutableChannels running_var,
                        const int64_t* num_batches_tracked, double momentum, double eps, bool allow_tf32, void* scratch,
                        void* stream) {
  float* moments = static_cast<float*>(scratch);
  conv_launches(plan, dtype, at, conv, nullptr, [&](const ConvArgs& args, int64_t number) {
    const MomentsBuffer to{moments, number * plan.tiles_m};
    switch (conv_math(dtype, allow_tf32)) {
      case ConvMath::f16:
        return launch_conv_stats<MathF16>(plan, args, to, stream);
      case ConvMath::bf16:
        return launch_conv_stats<MathBF16>(plan, args, to, stream);
      case ConvMath::tf32:
        return launch_conv_stats<MathTF32>(plan, args, to, stream);
      case ConvMath::f32:
        return launch_conv_stats<MathF32>(plan, args, to, stream);
    }
  });
  const BatchStatistics statistics{mean,
                                   invstd,
                                   running_mean,
                                   running_var,
                                   num_batches_tracked,
                                   static_cast<float>(momentum),
                                   static_cast<float>(eps)};
  const int64_t channels = conv.k * conv.groups;
  launch("conv_stats", conv_stats_merge_kernel, {ceil_div(channels, kMergeWide)}, kMergeThreads,
         merge_bytes<Moments<1>>(kMergeThreads), stream, moments, chunks_of(plan, conv), channels,
         conv.n * conv.p * conv.q, statistics);
}

void conv_stats(DType dtype, const void* x, const void* weight, void* out, Convolution conv, float* mean, float* invstd,
                MutableChannels running_mean, MutableChannels running_var, const int64_t* num_batches_tracked,
                double momentum, double eps, bool allow_tf32, ConvChoice choice, void* scratch, void* stream) {
  const ConvTensors at{x, weight, {}, out};
  const ConvPlan plan = conv_plan_chosen("conv_stats", choice, dtype, conv, allow_tf32, at.aligned(), 1);
  conv_stats_planned(plan, dtype, at, conv, mean, invstd, running_mean, running_var, num_batches_tracked, momentum, eps,
                     allow_tf32, scratch, stream);
}

}  // namespace resnet_fused::cuda
