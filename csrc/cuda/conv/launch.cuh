// Starts the kernels of one Math. Each Math and op has a .cu file that includes this header, so the files compile in
// parallel.
#pragma once

#include "cuda/base/launch.h"
#include "cuda/conv/conv_bn_relu.cuh"
#include "cuda/conv/splitk.cuh"
#include "cuda/conv/stats.cuh"

namespace resnet_fused::cuda {

// Calls body(Tile{}, kVector) with the types of the plan.
template <class Math, class Body>
void with_tile(const ConvPlan& plan, Body body) {
  if (!plan.vector) return body(Tile<Math, ConvTile::m64n64>{}, std::false_type{});
  if (plan.tile == ConvTile::m64n64) return body(Tile<Math, ConvTile::m64n64>{}, std::true_type{});
  if (plan.tile == ConvTile::m128n64) return body(Tile<Math, ConvTile::m128n64>{}, std::true_type{});
  if constexpr (Math::kMath != ConvMath::f32) body(Tile<Math, ConvTile::m128n128>{}, std::true_type{});
}

template <class Tile>
Grid conv_grid(const ConvPlan& plan, const ConvArgs& args) {
  return {ceil_div(args.m, Tile::kM) * args.groups * args.tiles_n, plan.splits};
}

// Adds the slices of a split that the previous launch has written.
template <class Math>
void launch_reduce(const ConvPlan& plan, const ConvArgs& args, void* stream) {
  if (plan.splits == 1) return;
  const Grid grid{ceil_div(args.m, kReduceRows), args.padded_n / kReduceColumns};
  launch("conv_bn_relu", conv_reduce_kernel<typename Math::Element>, grid, kReduceThreads, 3 * 4 * kReduceColumns,
         stream, args);
}

template <class Math>
void launch_conv(const ConvPlan& plan, const ConvArgs& args, void* stream) {
  with_tile<Math>(plan, [&](auto tile, auto vector) {
    using T = decltype(tile);
    launch("conv_bn_relu", conv_bn_relu_kernel<T, vector>, conv_grid<T>(plan, args), T::kThreads,
           T::kShape.shared_bytes(), stream, args);
  });
  launch_reduce<Math>(plan, args, stream);
}

// `plan` is the plan of `first`. Both convolutions have vector plans with the same tile.
template <class Math>
void launch_conv_pair(const ConvPlan& plan, const ConvArgs& first, const ConvArgs& second, void* stream) {
  with_tile<Math>(plan, [&](auto tile, auto vector) {
    using T = decltype(tile);
    if constexpr (vector) {
      Grid grid = conv_grid<T>(plan, first);
      const int first_tiles = static_cast<int>(grid.x);
      grid.x += conv_grid<T>(plan, second).x;
      launch("conv_bn_relu_pair", conv_pair_kernel<T>, grid, T::kThreads, T::kShape.shared_bytes(), stream, first,
             second, first_tiles);
    }
  });
  launch_reduce<Math>(plan, first, stream);
}

template <class Math>
void launch_conv_stats(const ConvPlan& plan, const ConvArgs& args, const MomentsBuffer& moments, void* stream) {
  with_tile<Math>(plan, [&](auto tile, auto vector) {
    using T = decltype(tile);
    launch("conv_stats", conv_stats_kernel<T, vector>, conv_grid<T>(plan, args), T::kThreads, T::kShape.shared_bytes(),
           stream, args, moments);
  });
}

}  // namespace resnet_fused::cuda
