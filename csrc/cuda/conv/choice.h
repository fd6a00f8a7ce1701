// A plan by name instead of by prediction: a measurement found it to be faster. Pure functions of a convolution's
// shape.
#pragma once

#include <algorithm>
#include <vector>

#include "cuda/conv/cluster_plan.h"

namespace resnet_fused::cuda {

inline constexpr std::string_view kConvTileNames[] = {"64x64", "128x64", "128x128"};
inline constexpr std::string_view kAutoTile = "auto";

constexpr std::string_view name_of(ConvTile tile) { return kConvTileNames[static_cast<int>(tile)]; }

inline void conv_refuse(const char* op, const std::string& why) { throw std::runtime_error(op + (": " + why)); }

inline ConvTile conv_tile_named(const char* op, std::string_view name) {
  for (const ConvTile tile : kAllConvTiles) {
    if (name_of(tile) == name) return tile;
  }
  conv_refuse(op, "tile must be auto, 64x64, 128x64 or 128x128, but is " + std::string(name));
  return {};
}

// The plan of `choice`. It refuses a choice that the shape does not allow. Where only the pointers are not aligned, it
// returns the automatic plan: a choice is remembered for a shape, and a later call may bring pointers that are not
// aligned.
inline ConvPlan conv_plan_chosen(const char* op, ConvChoice choice, DType dtype, const Convolution& conv,
                                 bool allow_tf32, bool aligned, int most_splits = ConvModel::kMaxSplits) {
  if (choice.early_weights && !choice.cluster) conv_refuse(op, "early_weights is for clusters, but cluster is false");
  if (choice.tile == kAutoTile) {
    if (choice.cluster) conv_refuse(op, "cluster needs a tile and splits by name, but tile is auto");
    if (choice.splits != 0)
      conv_refuse(op, "tile auto chooses its splits, but splits is " + std::to_string(choice.splits));
    return conv_plan(dtype, conv, allow_tf32, aligned, most_splits);
  }
  const ConvTile tile = conv_tile_named(op, choice.tile);
  const ConvMath math = conv_math(dtype, allow_tf32);
  ConvPlan plan = conv_plan_for(tile, dtype, conv, true, std::max<int64_t>(choice.splits, 1));
  if (!conv_tile_runs(tile, math, true)) {
    conv_refuse(op, "tile " + std::string(choice.tile) + " has no kernel for IEEE float32; use 64x64 or 128x64");
  }
  if (!conv_tile_runs(tile, math, plan.vector)) {
    conv_refuse(op, "tile " + std::string(choice.tile) + " needs channels per group that divide by " +
                        std::to_string(dtype == DType::f32 ? 4 : 8) + ", but they are " + std::to_string(conv.c));
  }
  if (choice.cluster && !plan.vector) {
    conv_refuse(op, "cluster needs channels per group that divide by " + std::to_string(dtype == DType::f32 ? 4 : 8) +
                        ", but they are " + std::to_string(conv.c));
  }
  if (choice.cluster && !is_cluster_size(choice.splits)) {
    conv_refuse(op, "splits of a cluster must be 2, 4 or 8, but is " + std::to_string(choice.splits));
  }
  if (choice.splits < 1 || choice.splits > most_splits) {
    conv_refuse(op, "splits must be 1 to " + std::to_string(most_splits) + ", but is " + std::to_string(choice.splits));
  }
  if (plan.splits != choice.splits) {
    conv_refuse(op, "splits " + std::to_string(choice.splits) + " leaves slices without work: there are " +
                        std::to_string(plan.steps) + " steps");
  }
  if (choice.cluster) plan.cluster = true, plan.scratch = 0;
  return aligned ? plan : conv_plan(dtype, conv, allow_tf32, false, most_splits);
}

inline std::vector<ConvChoice> by_clocks(std::vector<std::pair<double, ConvChoice>> found) {
  std::stable_sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
  std::vector<ConvChoice> choices;
  for (const auto& [cost, choice] : found) choices.push_back(choice);
  return choices;
}

// The choices by predicted time: every tile that can run the shape, whole and in slices. Slices beyond eight blocks per
// multiprocessor only add traffic and are left out. The choice with the best prediction is always included.
inline std::vector<ConvChoice> conv_choices_of(DType dtype, const Convolution& conv, bool allow_tf32, int most_splits) {
  const ConvMath math = conv_math(dtype, allow_tf32);
  const ConvPlan best = conv_plan(dtype, conv, allow_tf32, true, most_splits);
  std::vector<std::pair<double, ConvChoice>> found;
  for (const ConvTile tile : kAllConvTiles) {
    for (int splits = 1; splits <= most_splits && splits <= ConvModel::kMaxSplits; ++splits) {
      const ConvPlan plan = conv_plan_for(tile, dtype, conv, true, splits);
      if (!conv_tile_runs(tile, math, plan.vector) || plan.splits != splits) continue;
      const int64_t blocks = plan.tiles_m * plan.tiles_n * conv.groups * splits;
      // each is a third to a half more
      const bool sizes = splits <= 4 || splits % 8 == 0 || splits == 6 || splits == 12;
      const bool useful = splits == 1 || (plan.steps_per_split >= 2 && blocks <= 8 * ConvModel::kProcessors);
      const bool predicted = tile == best.tile && splits == best.splits;
      if (!predicted && !(sizes && useful)) continue;
      const int64_t m = plan.images * conv.p * conv.q;
      const double cost = conv_cost(shape_of(tile), math, m, conv.k, conv.groups, plan.steps, splits);
      found.push_back({cost, {name_of(tile), splits}});
    }
  }
  return by_clocks(found);
}

// Every cluster size whose blocks all run at once, by predicted time. Where all blocks do not fit, fewer slices are
// faster.
inline std::vector<ConvChoice> conv_cluster_choices_of(DType dtype, const Convolution& conv, bool allow_tf32) {
  const ConvMath math = conv_math(dtype, allow_tf32);
  std::vector<std::pair<double, ConvChoice>> found;
  for (const ConvTile tile : kAllConvTiles) {
    for (const int splits : kClusterSizes) {
      const ConvPlan plan = conv_plan_for(tile, dtype, conv, true, splits);
      const int64_t blocks = plan.tiles_m * plan.tiles_n * conv.groups * splits;
      const bool runs = plan.vector && conv_tile_runs(tile, math, true) && plan.splits == splits;
      if (!runs || plan.steps_per_split < 2 || blocks > shape_of(tile).blocks * ConvModel::kProcessors) continue;
      const int64_t m = plan.images * conv.p * conv.q;
      const double cost = conv_cluster_cost(shape_of(tile), math, m, conv.k, conv.groups, plan.steps, splits);
      found.push_back({cost, {name_of(tile), splits, true}});
    }
  }
  return by_clocks(found);
}

}  // namespace resnet_fused::cuda
