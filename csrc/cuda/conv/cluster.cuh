// A split convolution in one launch. The slices of a tile are the blocks of a cluster and add each other's sums through
// shared memory. The order of the additions and the result are those of the second kernel in splitk.cuh, bit for bit.
//
// The kernel is launched early (the rule: ptx/cluster.cuh). With `early_weights` it fetches weights before it waits for
// the kernel ahead, and only the activations are left to read after the wait. `early_weights` is the caller's promise
// that the kernel right ahead does not write the weights. A frozen engine can promise this, because its weights change
// only outside of its graph. A module cannot, because the kernel right ahead may have cast its weight.
#pragma once

#include "cuda/conv/cluster_plan.h"
#include "cuda/conv/mainloop.cuh"
#include "cuda/conv/staging.cuh"
#include "ptx/cluster.cuh"

namespace resnet_fused::cuda {

// Prefetches the weights of the slice's later steps from memory into L2. A line is one step of one output channel.
template <class Tile>
__device__ __forceinline__ void prefetch_weights(const ConvArgs& args, const Place<Tile>& place, const Slice& slice,
                                                 int from) {
  using Element = typename Tile::Element;
  const int channels = args.k - place.n0 < Tile::kN ? args.k - place.n0 : Tile::kN;
  for (int i = from * Tile::kN + ptx::tid(); i < slice.steps * Tile::kN; i += ptx::threads()) {
    const int n = i % Tile::kN, k = (slice.first + i / Tile::kN) * Tile::kStep;
    if (n >= channels || k >= args.filter) continue;
    const int64_t row = static_cast<int64_t>(place.group) * args.k + place.n0 + n;
    ptx::prefetch_l2(static_cast<const Element*>(args.weight) + row * args.filter + k);
  }
}

// Adds slices 0, 1, ... of the block's share of rows, then runs the common epilogue.
template <class Tile>
__device__ __forceinline__ void finish_share(const ConvArgs& args, uint32_t smem, const Place<Tile>& place) {
  using Element = typename Tile::Element;
  constexpr int kChunks = Tile::kN / 8, kRows = Tile::kThreads / kChunks;
  const int live = args.m - place.m0 < Tile::kM ? args.m - place.m0 : Tile::kM;
  const RowShare share = cluster_share(live, args.splits, ptx::cluster_rank());
  const int chunk = ptx::tid() % kChunks, n = place.n0 + 8 * chunk, valid = args.k - n;
  if (valid <= 0) return;
  const int64_t channel = static_cast<int64_t>(place.group) * args.k + n;
  for (int row = share.first + ptx::tid() / kChunks; row < share.end; row += kRows) {
    const int64_t at = args.out_channels() * (place.m0 + row) + channel;
    Eight<Element> residual{};
    if (args.epilogue.residual) residual = load_residual<Element, false>(args, at, valid);
    Sums sums[2] = {};
#pragma unroll 4
    for (int slice = 0; slice < args.splits; ++slice) {
      Sums part[2];
      Staging<Tile>::load_by(ptx::cluster_address(smem, slice), row, chunk, part,
                             [](uint32_t from) { return ptx::ld_cluster<Sums>(from); });
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sums[0].v[e] = ptx::add(sums[0].v[e], part[0].v[e]);
        sums[1].v[e] = ptx::add(sums[1].v[e], part[1].v[e]);
      }
    }
    finish<Element, Tile::kN>(args, smem + Tile::kNormOffset + 32 * chunk, sums, residual, at, valid);
  }
}

// Grid: x = tile, y = slice of the steps. The slices of a tile form a cluster.
template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kShape.blocks)
    conv_cluster_kernel(const ConvArgs args, bool early_weights) {
  const uint32_t smem = ptx::smem_base();
  const Place<Tile> place(args, ptx::bid_x());
  const Slice slice(args);
  const int64_t channel = static_cast<int64_t>(place.group) * args.k;
  Accumulators<Tile> acc = {};
  Loader<Tile, true> loader(args, smem, place.m0, place.group, place.n0, slice.first);
  if (early_weights) {
#pragma unroll
    for (int i = 0; i < Tile::kStages - 1; ++i) {
      if (i < slice.steps) loader.weights_of(i, i);
    }
    prefetch_weights<Tile>(args, place, slice, Tile::kStages - 1);
  }
  ptx::grid_wait();
#pragma unroll
  for (int i = 0; i < Tile::kStages - 1; ++i) {
    if (i < slice.steps) {
      if (early_weights) {
        loader.next_activations(i);
      } else {
        loader.next(i);
      }
    }
    ptx::cp_async_commit();  // the first group has all early weights too
  }
  // This runs while the copies are in flight. Before the wait it would delay a short wait, because staging waits for
  // its own loads.
  stage_norm<Tile::kN>(args.epilogue.norm, smem + Tile::kNormOffset, channel + place.n0, channel + args.k);
  conv_steps<Tile, true>(loader, smem, slice.steps, acc);
  ptx::grid_trigger();  // the rest needs little bandwidth and few multiprocessors

  ptx::sync_threads();  // every warp has read the last step, whose memory becomes the staging area
  Staging<Tile>::store(smem, acc);
  ptx::cluster_arrive();
  ptx::cluster_wait();
  finish_share<Tile>(args, smem, Place<Tile>(args, ptx::bid_x_again()));
  ptx::cluster_arrive_reads();  // no block may leave while another reads its memory
  ptx::cluster_wait();
}

}  // namespace resnet_fused::cuda
