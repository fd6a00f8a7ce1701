// Chooses the tile and the number of k-slices. Pure functions of a convolution's shape, so that a CPU can test and
// print them.
//
// The convolution is a matrix product [m, k-dim] x [k-dim, n]: m = output pixels, n = output channels of one group,
// k-dim = r * s * c. A block computes one tile of m x n and walks k-dim in steps of 128 bytes (64 16-bit channels).
// With splits > 1 each block takes a slice of the steps, and a second kernel adds the slices in a fixed order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "ops.h"

namespace resnet_fused::cuda {

struct TileShape {
  int m, n, warps_m, warps_n, stages, blocks;  // blocks: how many share a multiprocessor's registers
  constexpr int threads() const { return 32 * warps_m * warps_n; }
  constexpr int stage_bytes() const { return (m + n) * 128; }
  // The pipeline, plus mean, scale and bias of the tile's channels in float32.
  constexpr int shared_bytes() const { return stages * stage_bytes() + 3 * 4 * n; }
};

// Every tile stays below 99 KiB, the limit of a block on compute capability 8.6 and 8.9. m64n64 has four stages,
// because in a small launch only the pipeline hides latency. A tile has three stages where several blocks share a
// multiprocessor.
enum class ConvTile : int { m64n64, m128n64, m128n128 };
inline constexpr TileShape kConvTiles[] = {{64, 64, 2, 2, 4, 3}, {128, 64, 2, 2, 3, 3}, {128, 128, 2, 4, 3, 2}};
inline constexpr int kConvStepBytes = 128;

constexpr const TileShape& shape_of(ConvTile tile) { return kConvTiles[static_cast<int>(tile)]; }
inline constexpr ConvTile kAllConvTiles[] = {ConvTile::m64n64, ConvTile::m128n64, ConvTile::m128n128};

enum class ConvMath : int { f16, bf16, tf32, f32 };

inline ConvMath conv_math(DType dtype, bool allow_tf32) {
  if (dtype == DType::f16) return ConvMath::f16;
  if (dtype == DType::bf16) return ConvMath::bf16;
  return allow_tf32 ? ConvMath::tf32 : ConvMath::f32;
}

struct ConvPlan {
  ConvTile tile;
  bool vector;     // 16-byte copies, which the channels and pointers have to allow
  bool cluster;    // the slices are the blocks of a cluster (cluster.cuh): there is no second kernel and no scratch
  int64_t images;  // per launch; pixels are counted in 32 bits, so a larger batch takes several launches
  int64_t tiles_m, tiles_n;  // tiles_m of a full launch; tiles_n per group
  int steps, splits, steps_per_split;
  size_t scratch;  // bytes: float32 [splits, tiles_m * tile.m, groups * tiles_n * tile.n]
};

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// What the model assumes of a multiprocessor: H100 data, all of it predicted and not yet measured on a GPU. The count
// of multiprocessors is fixed instead of the device's, so that one shape has one plan and one result on every GPU.
struct ConvModel {
  static constexpr int kProcessors = 132;
  static constexpr double kL2BytesPerClock = 28;  // per multiprocessor: 6.5 TB/s at 1.76 GHz
  static constexpr double kLatency = 1000;        // clocks from a copy's issue to its arrival in a loaded GPU, L2 hit
  static constexpr double kBlock = 1500;          // clocks of the first copies and of the epilogue's latency
  static constexpr double kSecondKernel = 3000;   // clocks of the launch gap and the start of the split's second kernel
  static constexpr double kLaunchGap = 1500;  // clocks between two kernels of which neither waits for the other's data
  static constexpr int kMaxSplits = 32;
  static constexpr double macs_per_clock(ConvMath math) {  // mma.sync reaches about 62 % of the wgmma rate
    return math == ConvMath::f32 ? 128 : math == ConvMath::tf32 ? 635 : 1270;
  }
};

// Clocks of one step and of the epilogue of a block, when the busiest multiprocessor has `busiest` blocks.
struct BlockClocks {
  double step, epilogue;
};
inline BlockClocks block_clocks(const TileShape& tile, ConvMath math, int64_t busiest, int64_t splits) {
  const int element = math == ConvMath::f16 || math == ConvMath::bf16 ? 2 : 4;
  const int64_t resident = busiest < 2 ? 1 : 2;
  const double arithmetic = double(tile.m) * tile.n * (kConvStepBytes / element) / ConvModel::macs_per_clock(math);
  const double copies = tile.stage_bytes() / ConvModel::kL2BytesPerClock;
  const double latency = ConvModel::kLatency / double((tile.stages - 1) * resident);
  double step = arithmetic > copies ? arithmetic : copies;
  if (latency > step) step = latency;
  return {step, tile.m * tile.n * (splits > 1 ? 4.0 : 2.0 * element) / ConvModel::kL2BytesPerClock};
}

// Predicted clocks of the kernel that adds the slices of `tiles` tiles.
inline double reduce_cost(const TileShape& tile, int64_t tiles, int64_t splits) {
  if (splits == 1) return 0;
  const double partial = double(tiles) * tile.m * tile.n * 4 * splits;
  return ConvModel::kSecondKernel + partial / (ConvModel::kL2BytesPerClock * ConvModel::kProcessors);
}

// Predicted clocks of a launch.
inline double conv_cost(const TileShape& tile, ConvMath math, int64_t m, int64_t n, int64_t groups, int64_t steps,
                        int64_t splits) {
  const int64_t tiles = ceil_div(m, tile.m) * ceil_div(n, tile.n) * groups;
  const int64_t busiest = ceil_div(tiles * splits, ConvModel::kProcessors);
  const BlockClocks block = block_clocks(tile, math, busiest, splits);
  return busiest * (ceil_div(steps, splits) * block.step + block.epilogue) + ConvModel::kBlock +
         reduce_cost(tile, tiles, splits);
}

inline void conv_check(bool holds, const char* what, int64_t value) {
  if (!holds) throw std::invalid_argument(std::string("conv_bn_relu: ") + what + ", got " + std::to_string(value));
}

// Images of one launch. The kernels count in 32 bits: the pixels of a launch, and the units of x and weight (16 bytes,
// or elements when not `vector`).
inline int64_t conv_images(const Convolution& conv, int64_t unit) {
  constexpr int64_t kLimit = INT32_MAX - 4096;
  const int64_t channels = conv.c * conv.groups,
                x_image = (conv.h + conv.pad_h) * (conv.w + conv.pad_w) * channels / unit;
  conv_check(conv.c > 0 && conv.k > 0, "channels", conv.c);
  conv_check(conv.h + conv.pad_h < (1 << 29) && conv.w + conv.pad_w < (1 << 29), "height and width below 2^29", conv.h);
  conv_check(x_image <= kLimit / 2, "an image below 2^30 elements (2^30 16-byte pieces if channels divide by 8)",
             x_image);
  conv_check(conv.p * conv.q <= kLimit, "an output image below 2^31 pixels", conv.p * conv.q);
  conv_check(conv.r * conv.s * conv.c <= kLimit, "a filter below 2^31 elements", conv.r * conv.s * conv.c);
  conv_check((conv.k + 128) * conv.groups * (conv.r * conv.s * conv.c) / unit <= kLimit, "a weight below 2^31 elements",
             conv.k * conv.groups * (conv.r * conv.s * conv.c));
  const int64_t by_x = kLimit / 2 / x_image, by_out = kLimit / (conv.p * conv.q);
  const int64_t images = by_x < by_out ? by_x : by_out;
  return images < conv.n ? images : conv.n;
}

// `aligned`: x, weight, residual and out are aligned to 16 bytes.
inline ConvPlan conv_plan_for(ConvTile tile, DType dtype, const Convolution& conv, bool aligned, int64_t splits) {
  const int element = dtype == DType::f32 ? 4 : 2;
  const TileShape& shape = shape_of(tile);
  ConvPlan plan;
  plan.tile = tile;
  plan.cluster = false;
  plan.vector = aligned && conv.c % (16 / element) == 0;
  plan.images = conv_images(conv, plan.vector ? 16 / element : 1);
  plan.tiles_m = ceil_div(plan.images * conv.p * conv.q, shape.m);
  plan.tiles_n = ceil_div(conv.k, shape.n);
  conv_check(plan.tiles_m * plan.tiles_n * conv.groups <= INT32_MAX, "at most 2^31 tiles",
             plan.tiles_m * plan.tiles_n * conv.groups);
  plan.steps = static_cast<int>(ceil_div(conv.r * conv.s * conv.c * element, kConvStepBytes));
  if (splits > plan.steps) splits = plan.steps;
  plan.steps_per_split = static_cast<int>(ceil_div(plan.steps, splits));
  plan.splits = static_cast<int>(ceil_div(plan.steps, plan.steps_per_split));  // the last slice must not be empty
  plan.scratch = 0;
  if (plan.splits > 1) {
    plan.scratch = size_t(plan.splits) * plan.tiles_m * shape.m * conv.groups * plan.tiles_n * shape.n * sizeof(float);
  }
  return plan;
}

// The masked loader exists for the smallest tile only: unaligned channels are rare, and every instance makes the
// library larger. IEEE float32 does not use the largest tile, because the 8 x 8 outputs of a thread already hide shared
// memory's latency.
inline bool conv_tile_runs(ConvTile tile, ConvMath math, bool vector) {
  return (tile == ConvTile::m64n64 || vector) && (tile != ConvTile::m128n128 || math != ConvMath::f32);
}

// `most_splits` is 1 for an epilogue that needs whole sums.
inline ConvPlan conv_plan(DType dtype, const Convolution& conv, bool allow_tf32, bool aligned,
                          int most_splits = ConvModel::kMaxSplits) {
  const ConvMath math = conv_math(dtype, allow_tf32);
  ConvPlan best = conv_plan_for(ConvTile::m64n64, dtype, conv, aligned, 1);
  double best_cost = -1;
  for (const ConvTile tile : kAllConvTiles) {
    if (!conv_tile_runs(tile, math, best.vector)) continue;
    const TileShape& shape = shape_of(tile);
    for (int splits = 1; splits <= most_splits; ++splits) {
      const ConvPlan plan = conv_plan_for(tile, dtype, conv, aligned, splits);
      if (plan.splits != splits || (splits > 1 && plan.steps_per_split < 2)) continue;
      const double cost =
          conv_cost(shape, math, plan.images * conv.p * conv.q, conv.k, conv.groups, plan.steps, splits);
      if (best_cost < 0 || cost < best_cost) best = plan, best_cost = cost;
    }
  }
  return best;
}

}  // namespace resnet_fused::cuda
