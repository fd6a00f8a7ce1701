// Starts the cluster kernel of one Math. Each Math has a .cu file that includes this header, so the files compile in
// parallel.
#pragma once

#include "cuda/base/launch.h"
#include "cuda/conv/cluster.cuh"

namespace resnet_fused::cuda {

template <class Math>
void launch_conv_cluster(const ConvPlan& plan, const ConvArgs& args, bool early_weights, void* stream) {
  const auto launch_tile = [&](auto tile) {
    using T = decltype(tile);
    const Grid grid{ceil_div(args.m, T::kM) * args.groups * args.tiles_n, plan.splits};
    launch_clusters("conv_bn_relu", conv_cluster_kernel<T>, grid, {1, plan.splits}, T::kThreads,
                    T::kShape.shared_bytes(), stream, args, early_weights);
  };
  if (plan.tile == ConvTile::m64n64) return launch_tile(Tile<Math, ConvTile::m64n64>{});
  if (plan.tile == ConvTile::m128n64) return launch_tile(Tile<Math, ConvTile::m128n64>{});
  if constexpr (Math::kMath != ConvMath::f32) launch_tile(Tile<Math, ConvTile::m128n128>{});
}

}  // namespace resnet_fused::cuda
