// max_pool2d(relu(bn(conv(x, weight))), 3, stride 2, padding 1). The convolution's map exists in shared memory only.
#pragma once

#include "cuda/conv/epilogue.cuh"
#include "cuda/conv/mma.cuh"
#include "cuda/conv/pool_plan.h"

namespace resnet_fused::cuda {

struct PoolArgs {
  const void* x;
  const void* weight;
  void* out;
  Norm norm;
  PoolPlan plan;
  bool vector_out;
  int h, w, c, k, r, s, p, q, pooled_h, pooled_w;
  int stride_h, stride_w, pad_h, pad_w;
};

template <class MathType, PoolTile kTile>
struct PoolBlock {
  using Math = MathType;
  using Element = typename Math::Element;
  static constexpr PoolTileShape kShape = shape_of(kTile);
  static constexpr int kPoolH = kShape.pool_h, kPoolW = kShape.pool_w;
  static constexpr int kConvH = kShape.conv_h(), kConvW = kShape.conv_w();
  static constexpr int kM = kShape.m, kN = kShape.n, kThreads = kShape.threads();
  static constexpr int kWarpM = kM / kShape.warps_m, kWarpN = kN / kShape.warps_n;
  static constexpr int kFragmentsM = kWarpM / 16, kFragmentsN = kWarpN / 8;
  static_assert(kConvH * kConvW <= kM, "the tile's rows cover the convolution pixels");
};

// Copies the weights: weight_pitch bytes per output channel, [r][slices * 32 bytes]. Padding channels and the ends of
// slices are zeros.
template <class Block>
__device__ __forceinline__ void stage_weights(const PoolArgs& a, uint32_t smem, int n0) {
  using Element = typename Block::Element;
  for (int i = ptx::tid() * 16; i < Block::kN * a.plan.weight_pitch; i += Block::kThreads * 16) {
    ptx::st_shared(smem + i, ptx::Vec<uint32_t, 4>{});
  }
  ptx::sync_threads();
  const int row = a.s * a.c, filter = a.r * row, count = (a.k - n0 < Block::kN ? a.k - n0 : Block::kN) * filter;
  const Element* from = static_cast<const Element*>(a.weight) + static_cast<int64_t>(n0) * filter;
  for (int i = ptx::tid(); i < count; i += Block::kThreads) {
    const int n = i / filter, r = i % filter / row, s = i % row / a.c, c = i % a.c;
    const uint32_t to = smem + n * a.plan.weight_pitch + r * a.plan.slices * 32;
    ptx::st_shared(to + (s * a.plan.pixel + c) * static_cast<int>(sizeof(Element)),
                   ptx::ld_global_nc<Element>(from + i));
  }
}

// Copies the input pixels under the tile, h0 and w0 first. Pixels outside the image and padding channels are zeros.
template <class Block>
__device__ __forceinline__ void stage_patch(const PoolArgs& a, uint32_t smem, int64_t image, int h0, int w0) {
  using Element = typename Block::Element;
  constexpr int kPiece = 8 / sizeof(Element);
  const int pieces = a.plan.pixel / kPiece, row = a.plan.patch_w * pieces;
  for (int i = ptx::tid(); i < a.plan.patch_h * row; i += Block::kThreads) {
    const int y = i / row, x = i % row / pieces, c = i % pieces * kPiece;
    const int h = h0 + y, w = w0 + x;
    ptx::Vec<Element, kPiece> piece{};
    if (static_cast<unsigned>(h) < static_cast<unsigned>(a.h) &&
        static_cast<unsigned>(w) < static_cast<unsigned>(a.w)) {
      const Element* from = static_cast<const Element*>(a.x) + ((image * a.h + h) * a.w + w) * a.c + c;
#pragma unroll
      for (int e = 0; e < kPiece; ++e) {
        if (c + e < a.c) piece.v[e] = ptx::ld_global_nc<Element>(from + e);
      }
    }
    ptx::st_shared(smem + y * a.plan.patch_pitch + (x * pieces + i % pieces) * 8, piece);
  }
}

// Shared address of the window of the tile's convolution pixel m. Rows past the last pixel repeat the last pixel.
template <class Block>
__device__ __forceinline__ uint32_t window(const PoolArgs& a, uint32_t patch, int m) {
  constexpr int kLast = Block::kConvH * Block::kConvW - 1;
  if (m > kLast) m = kLast;
  return patch + m / Block::kConvW * a.stride_h * a.plan.patch_pitch +
         m % Block::kConvW * a.stride_w * a.plan.pixel * static_cast<int>(sizeof(typename Block::Element));
}

template <class Block>
__device__ __forceinline__ void multiply_patch(const PoolArgs& a, uint32_t patch, uint32_t weights,
                                               Accumulators<Block>& acc) {
  const int lane = ptx::lane();
  uint32_t window_of[Block::kFragmentsM], channel_of[Block::kFragmentsN / 2];
#pragma unroll
  for (int i = 0; i < Block::kFragmentsM; ++i) {
    window_of[i] = window<Block>(a, patch, warp_row<Block>() + 16 * i + lane % 16) + lane / 16 * 16;
  }
#pragma unroll
  for (int j = 0; j < Block::kFragmentsN / 2; ++j) {
    const int n = warp_column<Block>() + 16 * j + lane % 8 + lane / 16 * 8;
    channel_of[j] = weights + n * a.plan.weight_pitch + lane / 8 % 2 * 16;
  }
  // kSlice: elements of a slice. k0: k of this lane's first element in the low half of a slice.
  constexpr int kSlice = 32 / sizeof(typename Block::Element);
  const int k0 = lane % 4 * (4 / static_cast<int>(sizeof(typename Block::Element)));
  for (int r = 0; r < a.r; ++r) {
    for (int slice = 0; slice < a.plan.slices; ++slice) {
      const int k = slice * kSlice + k0;
      uint32_t b[Block::kFragmentsN][2];
#pragma unroll
      for (int j = 0; j < Block::kFragmentsN; j += 2) {
        load_b<typename Block::Math>(b[j], b[j + 1], channel_of[j / 2] + (r * a.plan.slices + slice) * 32);
      }
#pragma unroll
      for (int i = 0; i < Block::kFragmentsM; ++i) {
        uint32_t x[4];
        load_a<typename Block::Math>(x, window_of[i] + r * a.plan.patch_pitch + slice * 32);
        // Pixels right of the window meet zero weights. They are masked all the same: zero times NaN or infinity is
        // NaN.
        if (k >= a.plan.filter_row) x[0] = x[1] = 0;
        if (k + kSlice / 2 >= a.plan.filter_row) x[2] = x[3] = 0;
#pragma unroll
        for (int j = 0; j < Block::kFragmentsN; ++j) mma<typename Block::Math>(acc.v[i][j], x, b[j]);
      }
    }
  }
}

// The same product without tensor cores. A 16-byte chunk of float32 stays within its pixel, so no mask is needed.
template <class Block>
__device__ __forceinline__ void multiply_patch_f32(const PoolArgs& a, uint32_t patch, uint32_t weights,
                                                   Accumulators<Block>& acc) {
  using Chunk = ptx::Vec<float, 4>;
  const int g = ptx::lane() / 4, t = ptx::lane() % 4;
  uint32_t window_of[2 * Block::kFragmentsM];
#pragma unroll
  for (int i = 0; i < 2 * Block::kFragmentsM; ++i)
    window_of[i] = window<Block>(a, patch, warp_row<Block>() + 8 * i + g);
  const uint32_t channel = weights + (warp_column<Block>() + 2 * t) * a.plan.weight_pitch;
  for (int r = 0; r < a.r; ++r) {
    for (int chunk = 0; chunk < a.plan.filter_row / 4; ++chunk) {
      Chunk b[Block::kFragmentsN][2];
#pragma unroll
      for (int j = 0; j < Block::kFragmentsN; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          b[j][e] =
              ptx::ld_shared<Chunk>(channel + (8 * j + e) * a.plan.weight_pitch + r * a.plan.slices * 32 + chunk * 16);
        }
      }
#pragma unroll
      for (int i = 0; i < 2 * Block::kFragmentsM; ++i) {
        const Chunk x = ptx::ld_shared<Chunk>(window_of[i] + r * a.plan.patch_pitch + chunk * 16);
#pragma unroll
        for (int j = 0; j < Block::kFragmentsN; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& sum = acc.v[i / 2][j][i % 2 * 2 + e];
#pragma unroll
            for (int k = 0; k < 4; ++k) sum = ptx::fma(x.v[k], b[j][e].v[k], sum);
          }
        }
      }
    }
  }
}

// Writes relu(bn(sum)), rounded as the unfused map would be, to map_pitch bytes per convolution pixel.
template <class Block>
__device__ __forceinline__ void store_map(const PoolArgs& a, uint32_t map, uint32_t norm,
                                          const Accumulators<Block>& acc) {
  using Element = typename Block::Element;
  using Pair = ptx::Vec<float, 2>;
  const int g = ptx::lane() / 4, t = ptx::lane() % 4;
#pragma unroll
  for (int j = 0; j < Block::kFragmentsN; ++j) {
    const int n = warp_column<Block>() + 8 * j + 2 * t;
    const Pair mean = ptx::ld_shared<Pair>(norm + 4 * n), scale = ptx::ld_shared<Pair>(norm + 4 * (Block::kN + n));
    const Pair bias = ptx::ld_shared<Pair>(norm + 4 * (2 * Block::kN + n));
#pragma unroll
    for (int i = 0; i < 2 * Block::kFragmentsM; ++i) {
      ptx::Vec<Element, 2> pair;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float y = ptx::fma(ptx::add(acc.v[i / 2][j][i % 2 * 2 + e], -mean.v[e]), scale.v[e], bias.v[e]);
        pair.v[e] = ptx::from_float<Element>(activate(y, Activation::relu));
      }
      const int m = warp_row<Block>() + 8 * i + g;
      ptx::st_shared(map + m * a.plan.map_pitch + n * static_cast<int>(sizeof(Element)), pair);
    }
  }
}

// Pools eight channels of a pixel at a time. As in torch, a NaN wins, the first of equal values stays, and padding
// never counts.
template <class Block>
__device__ __forceinline__ void store_pooled(const PoolArgs& a, uint32_t map, int64_t image, int pool_y, int pool_x,
                                             int n0) {
  using Element = typename Block::Element;
  using Stored = Eight<Element>;
  constexpr int kChunks = Block::kN / 8, kLanes = 8 / Stored::kPieces;
  for (int i = ptx::tid(); i < Block::kPoolH * Block::kPoolW * kChunks; i += Block::kThreads) {
    const int chunk = i % kChunks, x = i / kChunks % Block::kPoolW, y = i / kChunks / Block::kPoolW;
    const int valid = a.k - (n0 + 8 * chunk);
    if (pool_y + y >= a.pooled_h || pool_x + x >= a.pooled_w || valid <= 0) continue;
    float best[8];
#pragma unroll
    for (int e = 0; e < 8; ++e) best[e] = -__builtin_huge_valf();
#pragma unroll
    for (int dy = 0; dy < 3; ++dy) {
#pragma unroll
      for (int dx = 0; dx < 3; ++dx) {
        const int row = 2 * (pool_y + y) - 1 + dy, column = 2 * (pool_x + x) - 1 + dx;
        if (row < 0 || row >= a.p || column < 0 || column >= a.q) continue;
        const uint32_t at = map + ((2 * y + dy) * Block::kConvW + 2 * x + dx) * a.plan.map_pitch +
                            8 * chunk * static_cast<int>(sizeof(Element));
#pragma unroll
        for (int piece = 0; piece < Stored::kPieces; ++piece) {
          const auto v = ptx::ld_shared<ptx::Vec<Element, kLanes>>(at + 16 * piece);
#pragma unroll
          for (int e = 0; e < kLanes; ++e) {
            const float y_e = ptx::to_float(v.v[e]);
            float& b = best[piece * kLanes + e];
            if (y_e > b || y_e != y_e) b = y_e;
          }
        }
      }
    }
    Element* out = static_cast<Element*>(a.out) + ((image * a.pooled_h + pool_y + y) * a.pooled_w + pool_x + x) * a.k +
                   n0 + 8 * chunk;
    Stored result{};
#pragma unroll
    for (int e = 0; e < 8; ++e) result[e] = ptx::from_float<Element>(best[e]);
    store_eight(out, result, a.vector_out, valid);
  }
}

// Grid: blocks of one x walk over the tiles, y = 64 output channels.
template <class Block>
__global__ void __launch_bounds__(Block::kThreads, Block::kShape.blocks) conv_bn_relu_pool_kernel(const PoolArgs args) {
  const uint32_t smem = ptx::smem_base(), weights = smem + args.plan.weight_offset, map = smem + args.plan.map_offset;
  const uint32_t norm = smem + args.plan.norm_offset;
  const int n0 = ptx::bid_y() * Block::kN;
  stage_norm<Block::kN>(args.norm, norm, n0, args.k);
  stage_weights<Block>(args, weights, n0);
  for (int64_t tile = ptx::bid_x(); tile < args.plan.tiles; tile += ptx::grid_x()) {
    const int64_t image = tile / (args.plan.tiles_h * args.plan.tiles_w);
    const int pool_y = static_cast<int>(tile / args.plan.tiles_w % args.plan.tiles_h) * Block::kPoolH;
    const int pool_x = static_cast<int>(tile % args.plan.tiles_w) * Block::kPoolW;
    // The map's first row and column lie one above and one left of the first window. They are the padding of the pool.
    const int h0 = (2 * pool_y - 1) * args.stride_h - args.pad_h, w0 = (2 * pool_x - 1) * args.stride_w - args.pad_w;
    // All reads of the patch came before the barrier that published the map, so the patch may be overwritten at once.
    stage_patch<Block>(args, smem, image, h0, w0);
    ptx::sync_threads();
    Accumulators<Block> acc = {};
    if constexpr (Block::Math::kMath == ConvMath::f32) {
      multiply_patch_f32<Block>(args, smem, weights, acc);
    } else {
      multiply_patch<Block>(args, smem, weights, acc);
    }
    store_map<Block>(args, map, norm, acc);
    ptx::sync_threads();
    store_pooled<Block>(args, map, image, pool_y, pool_x, n0);
  }
}

}  // namespace resnet_fused::cuda
