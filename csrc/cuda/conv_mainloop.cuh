// The implicit matrix product of a block's tile: activations x weights -> float32 sums in registers.
//
// A multi-stage ring in shared memory: while a step is multiplied, the copies of the next kStages - 1 are in flight.
// One barrier per step does two things: every thread's copies of this step have landed, and every warp has left the
// step before, whose stage the next copies overwrite.
#pragma once

#include "conv_load.cuh"
#include "conv_mma.cuh"

namespace resnet_fused::cuda {

// A block's tile. Groups and channels are fastest in bid_x: blocks that share pixels run together.
template <class Tile>
struct Place {
  int column, group, n0;  // column: of all channel tiles; n0: first channel within the group
  int64_t m0;

  __device__ __forceinline__ explicit Place(const ConvArgs& args) {
    const int columns = args.groups * args.tiles_n;
    column = ptx::bid_x() % columns;
    group = column / args.tiles_n, n0 = column % args.tiles_n * Tile::kN;
    m0 = static_cast<int64_t>(ptx::bid_x() / columns) * Tile::kM;
  }
};

// Sums of the slice bid_y() of the k-steps. `meanwhile` runs once, while the first copies are on their way.
template <class Tile, bool kVector, class Meanwhile>
__device__ __forceinline__ void conv_sums(const ConvArgs& args, const Place<Tile>& place, uint32_t smem,
                                          Accumulators<Tile>& acc, Meanwhile meanwhile) {
  const int first = ptx::bid_y() * args.steps_per_split;
  const int steps = args.steps - first < args.steps_per_split ? args.steps - first : args.steps_per_split;
  Loader<Tile, kVector> loader(args, smem, place.m0, place.group, place.n0, first);
#pragma unroll
  for (int i = 0; i < Tile::kStages - 1; ++i) {
    if (i < steps) loader.next(i);
    ptx::cp_async_commit();
  }
  meanwhile();
  int reading = 0, writing = Tile::kStages - 1;
  for (int step = 0; step < steps; ++step) {
    ptx::cp_async_wait<Tile::kStages - 2>();
    ptx::sync_threads();
    if (step + Tile::kStages - 1 < steps) loader.next(writing);
    ptx::cp_async_commit();  // also when empty: the wait counts groups
    const uint32_t a = smem + reading * Tile::kStageBytes;
    multiply_step<Tile>(acc, a, a + Tile::kM * kConvStepBytes);
    reading = reading + 1 == Tile::kStages ? 0 : reading + 1;
    writing = writing + 1 == Tile::kStages ? 0 : writing + 1;
  }
}

}  // namespace resnet_fused::cuda
