// Starts the kernels of one Math. One .cu per Math includes this, so that the four compile side by side.
#pragma once

#include "../launch.h"
#include "conv_bn_relu.cuh"
#include "conv_splitk.cuh"

namespace resnet_fused::cuda {

template <class Tile, bool kVector>
void launch_tile(const ConvPlan& plan, const ConvArgs& args, void* stream) {
  const Grid grid{ceil_div(args.m, Tile::kM) * args.groups * args.tiles_n, plan.splits};
  launch("conv_bn_relu", conv_bn_relu_kernel<Tile, kVector>, grid, Tile::kThreads, Tile::kShape.shared_bytes(), stream,
         args);
}

template <class Math>
void launch_conv(const ConvPlan& plan, const ConvArgs& args, void* stream) {
  if (!plan.vector) {
    launch_tile<Tile<Math, ConvTile::m64n64>, false>(plan, args, stream);
  } else if (plan.tile == ConvTile::m64n64) {
    launch_tile<Tile<Math, ConvTile::m64n64>, true>(plan, args, stream);
  } else if (plan.tile == ConvTile::m128n64) {
    launch_tile<Tile<Math, ConvTile::m128n64>, true>(plan, args, stream);
  } else if constexpr (Math::kMath != ConvMath::f32) {
    launch_tile<Tile<Math, ConvTile::m128n128>, true>(plan, args, stream);
  }
  if (plan.splits > 1) {
    const Grid grid{args.padded_n / kReduceColumns, ceil_div(args.m, kReduceRows)};
    launch("conv_bn_relu", conv_reduce_kernel<typename Math::Element>, grid, kReduceThreads,
           3 * 4 * kReduceColumns, stream, args);
  }
}

}  // namespace resnet_fused::cuda
