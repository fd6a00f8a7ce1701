// The implicit matrix product of a block's tile: activations x weights -> float32 sums in registers.
//
// A multi-stage ring in shared memory: while a step is multiplied, the copies of the next kStages - 1 are in flight.
// One barrier per step does two things: every thread's copies of this step have landed, and every warp has left the
// step before, whose stage the next copies overwrite.
#pragma once

#include "conv_load.cuh"
#include "conv_mma.cuh"

namespace resnet_fused::cuda {

// The tile of block `x`. Groups and channels are fastest: blocks that share pixels run together.
template <class Tile>
struct Place {
  int m0, group, n0;  // first pixel; first channel within the group

  __device__ __forceinline__ Place(const ConvArgs& args, int x) {
    const int columns = args.groups * args.tiles_n;
    const int column = x % columns;
    group = column / args.tiles_n, n0 = column % args.tiles_n * Tile::kN;
    m0 = x / columns * Tile::kM;
  }
};

// Sums of the slice bid_y() of the k-steps of tile bid_x() - first_block. meanwhile(place) runs once, while the first
// copies are on their way.
template <class Tile, bool kVector, class Meanwhile>
__device__ __forceinline__ void conv_sums(const ConvArgs& args, uint32_t smem, Accumulators<Tile>& acc, int first_block,
                                          Meanwhile meanwhile) {
  const Place<Tile> place(args, ptx::bid_x() - first_block);
  const int first = ptx::bid_y() * args.steps_per_split;
  const int steps = args.steps - first < args.steps_per_split ? args.steps - first : args.steps_per_split;
  Loader<Tile, kVector> loader(args, smem, place.m0, place.group, place.n0, first);
#pragma unroll
  for (int i = 0; i < Tile::kStages - 1; ++i) {
    if (i < steps) loader.next(i);
    ptx::cp_async_commit();
  }
  meanwhile(place);
  int reading = 0;  // stage
  for (int step = 0; step < steps; ++step) {
    ptx::cp_async_wait<Tile::kStages - 2>();
    ptx::sync_threads();
    if (step + Tile::kStages - 1 < steps) loader.next(reading == 0 ? Tile::kStages - 1 : reading - 1);
    ptx::cp_async_commit();  // also when empty: the wait counts groups
    const uint32_t a = smem + reading * Tile::kStageBytes;
    multiply_step<Tile>(acc, a, a + Tile::kM * kConvStepBytes);
    reading = reading + 1 == Tile::kStages ? 0 : reading + 1;
  }
}

}  // namespace resnet_fused::cuda
