// Slices of a convolution that are the blocks of one cluster: which sizes, who finishes which rows, and what it is
// predicted to take. Pure functions, so that a CPU can test and print them.
#pragma once

#include "cuda/conv/plan.h"
#include "ptx/ptx.cuh"  // __host__, __device__ of either world

namespace resnet_fused::cuda {

// What every device with clusters runs. 16 needs a permission, and 16 multiprocessors of one GPC to be free at once;
// odd sizes leave multiprocessors of a GPC without a cluster.
inline constexpr int kClusterSizes[] = {2, 4, 8};

constexpr bool is_cluster_size(int64_t splits) {
  for (const int size : kClusterSizes) {
    if (size == splits) return true;
  }
  return false;
}

// The rows of a tile that the block of rank `rank` finishes: its part of the `live` ones, those that are pixels of the
// output. Parts of the whole tile would leave blocks without work: 49 pixels in a tile of 64 are seven of eight blocks.
struct RowShare {
  int first, end;
};
__host__ __device__ __forceinline__ RowShare cluster_share(int live, int size, int rank) {
  const int most = (live + size - 1) / size;
  const int first = most * rank < live ? most * rank : live;
  return {first, live - first < most ? live : first + most};
}

struct ClusterModel {                           // clocks; predicted, as ConvModel
  static constexpr double kBarriers = 800;      // two of a cluster
  static constexpr double kBytesPerClock = 14;  // from other blocks' memory, per multiprocessor: 3.3 TB/s in all
};

// Predicted clocks of one launch that replaces the two of conv_cost. The start that an early launch hides is left out.
inline double conv_cluster_cost(const TileShape& tile, ConvMath math, int64_t m, int64_t n, int64_t groups,
                                int64_t steps, int64_t splits) {
  const int64_t tiles = ceil_div(m, tile.m) * ceil_div(n, tile.n) * groups;
  const int64_t busiest = ceil_div(tiles * splits, ConvModel::kProcessors);
  const BlockClocks block = block_clocks(tile, math, busiest, splits);
  const double reduce = double(tile.m) * tile.n * 4 / ClusterModel::kBytesPerClock;  // its share of every slice
  return busiest * (ceil_div(steps, splits) * block.step + reduce) + ClusterModel::kBarriers + ConvModel::kBlock;
}

}  // namespace resnet_fused::cuda
