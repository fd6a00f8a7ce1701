// Host side of conv_bn_relu_pool.
#include "cuda/base/launch.h"
#include "cuda/conv/pool.cuh"

namespace resnet_fused::cuda {
namespace {

template <class Math>
void launch_pool(const PoolArgs& args, void* stream) {
  const Grid grid{args.plan.blocks, args.plan.tiles_n};
  const auto run = [&](auto block) {
    using Block = decltype(block);
    launch("conv_bn_relu_pool", conv_bn_relu_pool_kernel<Block>, grid, Block::kThreads, args.plan.shared, stream, args);
  };
  if (args.plan.tile == PoolTile::p3x4) {
    run(PoolBlock<Math, PoolTile::p3x4>{});
  } else {
    run(PoolBlock<Math, PoolTile::p7x8>{});
  }
}

}  // namespace

void conv_bn_relu_pool_planned(const PoolPlan& plan, DType dtype, const void* x, const void* weight, Norm norm,
                               void* out, Convolution conv, bool allow_tf32, void* stream) {
  PoolArgs a{};
  a.x = x, a.weight = weight, a.out = out, a.norm = norm, a.plan = plan;
  a.vector_out = conv.k % 8 == 0 && reinterpret_cast<uintptr_t>(out) % 16 == 0;
  a.h = int(conv.h), a.w = int(conv.w), a.c = int(conv.c), a.k = int(conv.k), a.r = int(conv.r), a.s = int(conv.s);
  a.p = int(conv.p), a.q = int(conv.q);
  a.pooled_h = int(pooled_size(conv.p)), a.pooled_w = int(pooled_size(conv.q));
  a.stride_h = int(conv.stride_h), a.stride_w = int(conv.stride_w), a.pad_h = int(conv.pad_h),
  a.pad_w = int(conv.pad_w);
  switch (conv_math(dtype, allow_tf32)) {
    case ConvMath::f16:
      return launch_pool<MathF16>(a, stream);
    case ConvMath::bf16:
      return launch_pool<MathBF16>(a, stream);
    case ConvMath::tf32:
      return launch_pool<MathTF32>(a, stream);
    case ConvMath::f32:
      return launch_pool<MathF32>(a, stream);
  }
}

void conv_bn_relu_pool(DType dtype, const void* x, const void* weight, Norm norm, void* out, Convolution conv,
                       bool allow_tf32, void* stream) {
  conv_bn_relu_pool_planned(pool_plan(dtype, conv), dtype, x, weight, norm, out, conv, allow_tf32, stream);
}

}  // namespace resnet_fused::cuda
