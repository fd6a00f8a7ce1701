// out = activation(bn(conv(x, weight)) [+ residual]).
#pragma once

#include "cuda/conv/mainloop.cuh"
#include "cuda/conv/staging.cuh"

namespace resnet_fused::cuda {

template <class Tile>
__device__ __forceinline__ void store_tile(const ConvArgs& args, uint32_t smem, const Place<Tile>& place) {
  using Element = typename Tile::Element;
  constexpr int kChunks = Tile::kN / 8, kRows = Tile::kThreads / kChunks;
  constexpr int kBatch = 8 / sizeof(Element);  // 16 registers of residual
  const int chunk = ptx::tid() % kChunks, n = place.n0 + 8 * chunk, valid = args.k - n;
  if (valid <= 0) return;
  const int64_t channel = static_cast<int64_t>(place.group) * args.k + n;
  for (int row = ptx::tid() / kChunks; row < Tile::kM; row += kBatch * kRows) {
    Eight<Element> residual[kBatch] = {};
    // All loads of a batch are issued before the first value is needed.
    if (args.epilogue.residual) {
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int m = place.m0 + row + i * kRows;
        if (m < args.m) residual[i] = load_residual<Element>(args, args.out_channels() * m + channel, valid);
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int m = place.m0 + row + i * kRows;
      if (m >= args.m) break;
      Sums sums[2];
      Staging<Tile>::load(smem, row + i * kRows, chunk, sums);
      finish<Element, Tile::kN>(args, smem + Tile::kNormOffset + 32 * chunk, sums, residual[i],
                                args.out_channels() * m + channel, valid);
    }
  }
}

// Writes a slice's raw sums to its plane of the scratch. The plane has room for the tile's padding, so the stores need
// no bounds.
template <class Tile>
__device__ __forceinline__ void store_partial(const ConvArgs& args, const Accumulators<Tile>& acc,
                                              const Place<Tile>& place) {
  const int g = ptx::lane() / 4, t = ptx::lane() % 4;
  float* plane = args.partial + ptx::bid_y() * args.padded_m * args.padded_n;
#pragma unroll
  for (int i = 0; i < 2 * Tile::kFragmentsM; ++i) {
    const int64_t m = place.m0 + warp_row<Tile>() + 8 * i + g;
    float* row = plane + m * args.padded_n + static_cast<int64_t>(place.group) * args.tiles_n * Tile::kN + place.n0 +
                 warp_column<Tile>() + 2 * t;
#pragma unroll
    for (int j = 0; j < Tile::kFragmentsN; ++j) {
      const float* pair = &acc.v[i / 2][j][i % 2 * 2];
      ptx::st_global(row + 8 * j, ptx::Vec<float, 2>{{pair[0], pair[1]}});
    }
  }
}

// Computes tile bid_x() - first_block, slice bid_y() of the steps.
template <class Tile, bool kVector>
__device__ __forceinline__ void conv_bn_relu_tile(const ConvArgs& args, int first_block) {
  const uint32_t smem = ptx::smem_base();
  Accumulators<Tile> acc = {};
  conv_sums<Tile, kVector>(args, smem, acc, first_block, [&](const Place<Tile>& place) {
    const int64_t channel = static_cast<int64_t>(place.group) * args.k;
    if (!args.partial)
      stage_norm<Tile::kN>(args.epilogue.norm, smem + Tile::kNormOffset, channel + place.n0, channel + args.k);
  });
  const Place<Tile> place(args, ptx::bid_x_again() - first_block);
  if (args.partial) {
    store_partial<Tile>(args, acc, place);
    return;
  }
  ptx::sync_threads();  // every warp has read the last step, whose memory becomes the staging area
  Staging<Tile>::store(smem, acc);
  ptx::sync_threads();
  store_tile<Tile>(args, smem, place);
}

// Grid: x = tile, y = slice of the steps.
template <class Tile, bool kVector>
__global__ void __launch_bounds__(Tile::kThreads, kVector ? Tile::kShape.blocks : 2)
    conv_bn_relu_kernel(const ConvArgs args) {
  conv_bn_relu_tile<Tile, kVector>(args, 0);
}

// Two convolutions of one input in one launch: the first convolution of a block and its projection. The tiles of the
// second follow those of the first in x. Every slice of the first has a row of the grid; the second has one slice.
template <class Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kShape.blocks)
    conv_pair_kernel(const ConvArgs first, const ConvArgs second, int first_tiles) {
  // Two calls, not one call with a reference to either argument: a reference would move the parameters from constant to
  // local memory.
  if (ptx::bid_x() < first_tiles) {
    conv_bn_relu_tile<Tile, true>(first, 0);
  } else if (ptx::bid_y() == 0) {
    conv_bn_relu_tile<Tile, true>(second, first_tiles);
  }
}

}  // namespace resnet_fused::cuda
