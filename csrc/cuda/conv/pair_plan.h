// Whether the first convolution of a block and its projection share a launch: pure functions of their shapes.
#pragma once

#include "cuda/conv/choice.h"

namespace resnet_fused::cuda {

inline constexpr std::string_view kApart = "apart";

struct ConvPairPlan {
  bool together;
  ConvPlan first, second;       // plans of the shared launch: both have one tile, and the second has one slice
  double clocks, clocks_apart;  // predicted
};

inline double plan_cost(const ConvPlan& plan, ConvMath math, const Convolution& conv) {
  return conv_cost(shape_of(plan.tile), math, plan.images * conv.p * conv.q, conv.k, conv.groups, plan.steps,
                   plan.splits);
}

// One launch saves the gap between two launches, and the projection's few blocks fill the last wave of the first
// convolution. In one launch the projection has the tile of the first convolution and one slice. One launch therefore
// does not pay where the projection alone would take a better tile or several slices. A choice overrules the
// prediction: the tile "apart" means two launches, any other tile means one launch with that tile and the choice's
// slices.
inline ConvPairPlan conv_pair_plan(DType dtype, const Convolution& first, const Convolution& second, bool allow_tf32,
                                   bool aligned, ConvChoice choice = {}) {
  const char* op = "conv_bn_relu_pair";
  const ConvMath math = conv_math(dtype, allow_tf32);
  ConvPairPlan pair{};
  if (choice.tile == kApart) {
    if (choice.splits != 0) conv_refuse(op, "tile apart has no splits, but splits is " + std::to_string(choice.splits));
    return pair;
  }
  pair.first = conv_plan_chosen(op, choice, dtype, first, allow_tf32, aligned);
  const ConvPlan alone = conv_plan(dtype, second, allow_tf32, aligned);
  pair.clocks_apart = plan_cost(pair.first, math, first) + plan_cost(alone, math, second) + ConvModel::kLaunchGap;
  pair.second = conv_plan_for(pair.first.tile, dtype, second, aligned, 1);

  const TileShape& tile = shape_of(pair.first.tile);
  const int64_t first_tiles = pair.first.tiles_m * pair.first.tiles_n * first.groups;
  const int64_t second_tiles = pair.second.tiles_m * pair.second.tiles_n * second.groups;
  const int64_t blocks = first_tiles * pair.first.splits + second_tiles;
  const int64_t busiest = ceil_div(blocks, ConvModel::kProcessors);
  const BlockClocks of_first = block_clocks(tile, math, busiest, pair.first.splits);
  const BlockClocks of_second = block_clocks(tile, math, busiest, 1);
  const double first_block = pair.first.steps_per_split * of_first.step + of_first.epilogue;
  const double second_block = pair.second.steps * of_second.step + of_second.epilogue;
  const double work = first_tiles * pair.first.splits * first_block + second_tiles * second_block;
  // The time of blocks that are spread evenly, plus one block that starts last.
  const double longest = first_block > second_block ? first_block : second_block;
  const double spread = work / ConvModel::kProcessors + (busiest > 1 ? second_block : 0);
  pair.clocks =
      (spread > longest ? spread : longest) + ConvModel::kBlock + reduce_cost(tile, first_tiles, pair.first.splits);

  const bool one_launch = pair.first.images == first.n && pair.second.images == second.n;
  const bool able = pair.first.vector && pair.second.vector && one_launch;
  const bool chosen = choice.tile != kAutoTile;
  if (chosen && aligned && !able) {
    conv_refuse(op, "tile " + std::string(choice.tile) + " needs channels that divide by " +
                        std::to_string(dtype == DType::f32 ? 4 : 8) + " and a batch of one launch, but channels are " +
                        std::to_string(first.c));
  }
  pair.together = able && (chosen || pair.clocks < pair.clocks_apart);
  return pair;
}

}  // namespace resnet_fused::cuda
