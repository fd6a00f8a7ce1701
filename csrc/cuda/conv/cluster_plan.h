// Slices of a convolution that are the blocks of one cluster: the possible sizes, the rows that each block finishes,
// and the predicted time. Pure functions, so that a CPU can test and print them.
#pragma once

#include "cuda/conv/plan.h"
#include "ptx/ptx.cuh"  // defines __host__ and __device__ for g++ too

namespace resnet_fused::cuda {

// Every device with clusters runs these sizes. Size 16 needs a permission, and it needs 16 free multiprocessors of one
// GPC. Odd sizes leave multiprocessors of a GPC without a cluster.
inline constexpr int kClusterSizes[] = {2, 4, 8};

constexpr bool is_cluster_size(int64_t splits) {
  for (const int size : kClusterSizes) {
    if (size == splits) return true;
  }
  return false;
}

// The rows of a tile that the block of rank `rank` finishes. It is a part of the `live` rows, which are pixels of the
// output. Equal parts of the whole tile would leave blocks without work: 49 pixels in a tile of 64 occupy seven of
// eight blocks.
struct RowShare {
  int first, end;
};
__host__ __device__ __forceinline__ RowShare cluster_share(int live, int size, int rank) {
  const int most = (live + size - 1) / size;
  const int first = most * rank < live ? most * rank : live;
  return {first, live - first < most ? live : first + most};
}

struct ClusterModel {                           // clocks, predicted, as in ConvModel
  static constexpr double kBarriers = 800;      // two barriers of a cluster
  static constexpr double kBytesPerClock = 14;  // from other blocks' shared memory, per multiprocessor: 3.3 TB/s in all
};

// Predicted clocks of one launch that replaces the two launches of conv_cost. The time that an early launch hides is
// left out.
inline double conv_cluster_cost(const TileShape& tile, ConvMath math, int64_t m, int64_t n, int64_t groups,
                                int64_t steps, int64_t splits) {
  const int64_t tiles = ceil_div(m, tile.m) * ceil_div(n, tile.n) * groups;
  const int64_t busiest = ceil_div(tiles * splits, ConvModel::kProcessors);
  const BlockClocks block = block_clocks(tile, math, busiest, splits);
  const double reduce = double(tile.m) * tile.n * 4 / ClusterModel::kBytesPerClock;  // a block's share of every slice
  return busiest * (ceil_div(steps, splits) * block.step + reduce) + ClusterModel::kBarriers + ConvModel::kBlock;
}

}  // namespace resnet_fused::cuda
