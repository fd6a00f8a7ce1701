// out = [relu](bn(conv(x, weight)) [+ residual]): an implicit matrix product on tensor cores.
//
// A multi-stage ring in shared memory: while a step is multiplied, the copies of the next kStages - 1 are in flight.
// One barrier per step does two things: every thread's copies of this step have landed, and every warp has left the
// step before, whose stage the next copies overwrite.
#pragma once

#include "conv_epilogue.cuh"
#include "conv_load.cuh"
#include "conv_mma.cuh"

namespace resnet_fused::cuda {

// Sums leave through shared memory: fragments own scattered pairs, global memory wants rows. A row of kN floats plus
// 8: pairs of four rows then fall into different banks.
template <class Tile>
struct Staging {
  static constexpr int kRowBytes = (Tile::kN + 8) * 4;
  static_assert(Tile::kM * kRowBytes <= Tile::kNormOffset, "the staged tile reuses the pipeline's memory");

  __device__ static __forceinline__ void store(uint32_t smem, const Accumulators<Tile>& acc) {
    const int g = ptx::lane() / 4, t = ptx::lane() % 4;
#pragma unroll
    for (int i = 0; i < 2 * Tile::kFragmentsM; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kFragmentsN; ++j) {
        const int row = warp_row<Tile>() + 8 * i + g, column = warp_column<Tile>() + 8 * j + 2 * t;
        const float* pair = &acc.v[i / 2][j][i % 2 * 2];
        ptx::st_shared(smem + row * kRowBytes + column * 4, ptx::Vec<float, 2>{{pair[0], pair[1]}});
      }
    }
  }

  // Channels 8 chunk .. 8 chunk + 7 of a row. Half of the lanes read their upper half first: eight lanes at 32-byte
  // distance would meet in half of the banks.
  __device__ static __forceinline__ void load(uint32_t smem, int row, int chunk, Sums (&sums)[2]) {
    const int first = ptx::lane() / 4 % 2;
    const uint32_t at = smem + row * kRowBytes + chunk * 32;
    const Sums one = ptx::ld_shared<Sums>(at + 16 * first), two = ptx::ld_shared<Sums>(at + 16 * (1 - first));
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      sums[0].v[e] = first ? two.v[e] : one.v[e];
      sums[1].v[e] = first ? one.v[e] : two.v[e];
    }
  }
};

template <class Tile>
__device__ __forceinline__ void store_tile(const ConvArgs& args, uint32_t smem, int64_t m0, int group, int n0) {
  using Element = typename Tile::Element;
  constexpr int kChunks = Tile::kN / 8, kRows = Tile::kThreads / kChunks, kBatch = 4;
  const int chunk = ptx::tid() % kChunks, n = n0 + 8 * chunk, valid = args.k - n;
  if (valid <= 0) return;
  const int64_t channel = static_cast<int64_t>(group) * args.k + n;
  for (int row = ptx::tid() / kChunks; row < Tile::kM; row += kBatch * kRows) {
    Eight<Element> residual[kBatch] = {};
    if (args.residual) {  // all loads of a batch in flight before the first is needed
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int64_t m = m0 + row + i * kRows;
        if (m < args.m) residual[i] = load_residual<Element>(args, m * args.out_channels() + channel, valid);
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int64_t m = m0 + row + i * kRows;
      if (m >= args.m) break;
      Sums sums[2];
      Staging<Tile>::load(smem, row + i * kRows, chunk, sums);
      finish<Element, Tile::kN>(args, smem + Tile::kNormOffset + 32 * chunk, sums, residual[i],
                                m * args.out_channels() + channel, valid);
    }
  }
}

// A slice's raw sums to its plane of the scratch; the padding of the tile is written too, so no bounds are needed.
template <class Tile>
__device__ __forceinline__ void store_partial(const ConvArgs& args, const Accumulators<Tile>& acc, int64_t m0,
                                              int64_t column0) {
  const int g = ptx::lane() / 4, t = ptx::lane() % 4;
  float* plane = args.partial + ptx::bid_y() * args.padded_m * args.padded_n;
#pragma unroll
  for (int i = 0; i < 2 * Tile::kFragmentsM; ++i) {
    const int64_t m = m0 + warp_row<Tile>() + 8 * i + g;
    float* row = plane + m * args.padded_n + column0 + warp_column<Tile>() + 2 * t;
#pragma unroll
    for (int j = 0; j < Tile::kFragmentsN; ++j) {
      const float* pair = &acc.v[i / 2][j][i % 2 * 2];
      ptx::st_global(row + 8 * j, ptx::Vec<float, 2>{{pair[0], pair[1]}});
    }
  }
}

// Grid: x = tile (groups and channels fastest: blocks that share pixels run together), y = slice of the steps.
template <class Tile, bool kVector>
__global__ void __launch_bounds__(Tile::kThreads, kVector ? Tile::kShape.blocks : 2) conv_bn_relu_kernel(const ConvArgs args) {
  const int columns = args.groups * args.tiles_n;
  const int column = ptx::bid_x() % columns;
  const int group = column / args.tiles_n, n0 = column % args.tiles_n * Tile::kN;
  const int64_t m0 = static_cast<int64_t>(ptx::bid_x() / columns) * Tile::kM;
  const int first = ptx::bid_y() * args.steps_per_split;
  const int steps = args.steps - first < args.steps_per_split ? args.steps - first : args.steps_per_split;
  const uint32_t smem = ptx::smem_base();

  Loader<Tile, kVector> loader(args, smem, m0, group, n0, first);
#pragma unroll
  for (int i = 0; i < Tile::kStages - 1; ++i) {
    if (i < steps) loader.next(i);
    ptx::cp_async_commit();
  }
  if (!args.partial) {
    const int64_t channel = static_cast<int64_t>(group) * args.k;
    stage_norm<Tile::kN>(args.norm, smem + Tile::kNormOffset, channel + n0, channel + args.k);
  }

  Accumulators<Tile> acc = {};
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

  if (args.partial) {
    store_partial<Tile>(args, acc, m0, static_cast<int64_t>(column) * Tile::kN);
    return;
  }
  ptx::sync_threads();  // every warp has read the last step: its memory becomes the staging area
  Staging<Tile>::store(smem, acc);
  ptx::sync_threads();
  store_tile<Tile>(args, smem, m0, group, n0);
}

}  // namespace resnet_fused::cuda
