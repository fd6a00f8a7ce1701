// The implicit matrix product of a block's tile: activations x weights, summed in float32 registers.
//
// Shared memory is a ring of stages. While one step is multiplied, the copies of the next kStages - 1 steps are in
// flight. One barrier per step ensures two things: every thread's copies of this step have arrived, and every warp has
// finished the previous step, whose stage the next copies overwrite.
#pragma once

#include "cuda/conv/load.cuh"
#include "cuda/conv/mma.cuh"

namespace resnet_fused::cuda {

// The tile of block `x`. Groups and channels vary fastest, so blocks that share pixels run together.
template <class Tile>
struct Place {
  int m0, group, n0;  // first pixel; group; first channel within the group

  __device__ __forceinline__ Place(const ConvArgs& args, int x) {
    const int columns = args.groups * args.tiles_n;
    const int column = x % columns;
    group = column / args.tiles_n, n0 = column % args.tiles_n * Tile::kN;
    m0 = x / columns * Tile::kM;
  }
};

// The k-steps of slice bid_y().
struct Slice {
  int first, steps;

  __device__ __forceinline__ explicit Slice(const ConvArgs& args) : first(ptx::bid_y() * args.steps_per_split) {
    steps = args.steps - first < args.steps_per_split ? args.steps - first : args.steps_per_split;
  }
};

// Multiplies all `steps` of a slice. The copies of the first kStages - 1 steps have been started to stages 0, 1, ...,
// one group of copies for each step.
template <class Tile, bool kVector>
__device__ __forceinline__ void conv_steps(Loader<Tile, kVector>& loader, uint32_t smem, int steps,
                                           Accumulators<Tile>& acc) {
  int reading = 0;  // stage that is read
  for (int step = 0; step < steps; ++step) {
    ptx::cp_async_wait<Tile::kStages - 2>();
    ptx::sync_threads();
    if (step + Tile::kStages - 1 < steps) loader.next(reading == 0 ? Tile::kStages - 1 : reading - 1);
    ptx::cp_async_commit();  // an empty step commits too, because the wait counts groups
    const uint32_t a = smem + reading * Tile::kStageBytes;
    multiply_step<Tile>(acc, a, a + Tile::kM * kConvStepBytes);
    reading = reading + 1 == Tile::kStages ? 0 : reading + 1;
  }
}

// The sums of slice bid_y() of the k-steps of tile bid_x() - first_block. meanwhile(place) runs once, while the first
// copies are in flight.
template <class Tile, bool kVector, class Meanwhile>
__device__ __forceinline__ void conv_sums(const ConvArgs& args, uint32_t smem, Accumulators<Tile>& acc, int first_block,
                                          Meanwhile meanwhile) {
  const Place<Tile> place(args, ptx::bid_x() - first_block);
  const Slice slice(args);
  Loader<Tile, kVector> loader(args, smem, place.m0, place.group, place.n0, slice.first);
#pragma unroll
  for (int i = 0; i < Tile::kStages - 1; ++i) {
    if (i < slice.steps) loader.next(i);
    ptx::cp_async_commit();
  }
  meanwhile(place);
  conv_steps<Tile, kVector>(loader, smem, slice.steps, acc);
}

}  // namespace resnet_fused::cuda
