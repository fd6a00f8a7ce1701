// How conv_bn_relu_pool divides its work: pure functions of the shape.
//
// A block computes a rectangle of a x b pooled pixels from the (2 a + 1) x (2 b + 1) convolution pixels under it.
// Neighbouring blocks compute the overlapping convolution pixels twice (14 % for the large tile). The input patch lies
// in shared memory. Its channels are padded so that a filter row of any output pixel starts at a multiple of 16 bytes.
// ldmatrix can then read overlapping windows straight from the patch, and no im2col copy is made, which would be 49
// times as large for a 7x7 stem.
#pragma once

#include "cuda/conv/plan.h"

namespace resnet_fused::cuda {

struct PoolTileShape {
  int pool_h, pool_w, m, n, warps_m, warps_n, blocks;
  constexpr int threads() const { return 32 * warps_m * warps_n; }
  constexpr int conv_h() const { return 2 * pool_h + 1; }
  constexpr int conv_w() const { return 2 * pool_w + 1; }
};

// The large tile uses 15 x 17 = 255 of 256 rows (56 x 56 pooled pixels are 8 x 7 such tiles). The small tile uses 7 x 9
// = 63 of 64.
enum class PoolTile : int { p7x8, p3x4 };
inline constexpr PoolTileShape kPoolTiles[] = {{7, 8, 256, 64, 4, 2, 1}, {3, 4, 64, 64, 2, 2, 2}};
constexpr const PoolTileShape& shape_of(PoolTile tile) { return kPoolTiles[static_cast<int>(tile)]; }

struct PoolPlan {
  PoolTile tile;
  int pixel;                          // elements of a pixel in shared memory: c plus padding
  int filter_row, slices;             // elements of a filter row that carry weights; 32-byte k-slices that cover them
  int patch_h, patch_w, patch_pitch;  // patch_pitch: bytes from a patch row to the next
  int weight_pitch, map_pitch;  // bytes from one output channel to the next, from one convolution pixel to the next
  // offsets within shared memory (the patch comes first), bytes of it
  int weight_offset, map_offset, norm_offset, shared;
  int64_t tiles_h, tiles_w, tiles, tiles_n, blocks;  // a block walks over the tiles of one column of channels
};

inline PoolPlan pool_plan_for(PoolTile tile, DType dtype, const Convolution& conv) {
  const PoolTileShape& shape = shape_of(tile);
  const int64_t element = dtype == DType::f32 ? 4 : 2, chunk = 16 / element;
  const int64_t pad_to = dtype == DType::f32 || conv.stride_w % 2 ? chunk : chunk / 2;
  const int64_t pixel = ceil_div(conv.c, pad_to) * pad_to;
  const int64_t slices = ceil_div(conv.s * pixel * element, 32);
  const int64_t patch_h = (shape.conv_h() - 1) * conv.stride_h + conv.r;
  // The last slice may reach past the window. Those pixels are loaded too, and they are masked before the product.
  const int64_t patch_w =
      ceil_div((shape.conv_w() - 1) * conv.stride_w * pixel * element + slices * 32, pixel * element);
  const int64_t patch_pitch = ceil_div(patch_w * pixel * element, 16) * 16;
  const int64_t weight_pitch = conv.r * slices * 32 + 16;  // an odd number of 16-byte chunks avoids bank conflicts
  const int64_t map_pitch = shape.n * element + 16;
  const int64_t weight_offset = patch_h * patch_pitch, map_offset = weight_offset + shape.n * weight_pitch;
  const int64_t norm_offset = map_offset + shape.m * map_pitch, shared = norm_offset + 3 * 4 * shape.n;
  const int64_t limit = INT32_MAX / 2;
  PoolPlan plan;
  plan.tile = tile;
  plan.pixel = int(pixel), plan.filter_row = int(conv.s * pixel), plan.slices = int(slices);
  plan.patch_h = int(patch_h), plan.patch_w = int(patch_w), plan.patch_pitch = int(patch_pitch);
  plan.weight_pitch = int(weight_pitch), plan.map_pitch = int(map_pitch);
  plan.weight_offset = int(weight_offset), plan.map_offset = int(map_offset), plan.norm_offset = int(norm_offset);
  plan.shared = shared < limit ? int(shared) : INT32_MAX;
  plan.tiles_h = ceil_div(pooled_size(conv.p), shape.pool_h);
  plan.tiles_w = ceil_div(pooled_size(conv.q), shape.pool_w);
  plan.tiles = conv.n * plan.tiles_h * plan.tiles_w;
  plan.tiles_n = ceil_div(conv.k, shape.n);
  // A block copies the weights once and then walks over its tiles. There are as many blocks as run at the same time.
  const int64_t columns = plan.tiles_n < 2 * ConvModel::kProcessors ? plan.tiles_n : 2 * ConvModel::kProcessors;
  const int64_t most = 2 * ConvModel::kProcessors / columns;
  plan.blocks = plan.tiles < most ? plan.tiles : most;
  return plan;
}

// Bytes that every supported GPU grants a block (99 KiB on compute capability 8.6 and 8.9).
inline constexpr int kPoolShared = 99 * 1024;

// All limits of the kernel. csrc/register/ asks for them before it allocates.
inline bool conv_bn_relu_pool_accepts(DType dtype, const Convolution& conv) {
  if (conv.groups != 1 || conv.dilation_h != 1 || conv.dilation_w != 1) return false;
  if (conv.h > (1 << 24) || conv.w > (1 << 24) || conv.r > 64 || conv.s > 64 || conv.c > 4096) return false;
  if (conv.stride_h > 64 || conv.stride_w > 64 || conv.k >= (1 << 22)) return false;
  return pool_plan_for(PoolTile::p3x4, dtype, conv).shared <= kPoolShared;
}

inline PoolPlan pool_plan(DType dtype, const Convolution& conv) {
  if (!conv_bn_relu_pool_accepts(dtype, conv)) {
    throw std::invalid_argument(
        "conv_bn_relu_pool: takes one group, no dilation, and filters and input patches that fit into 99 KiB of shared "
        "memory; got " +
        std::to_string(conv.c) + " channels, " + std::to_string(conv.r) + "x" + std::to_string(conv.s) + " filters, " +
        std::to_string(conv.groups) + " groups");
  }
  const PoolPlan large = pool_plan_for(PoolTile::p7x8, dtype, conv);
  // The large tile is used where it fits and its blocks fill the GPU.
  if (large.shared <= kPoolShared && large.tiles * large.tiles_n >= ConvModel::kProcessors) return large;
  return pool_plan_for(PoolTile::p3x4, dtype, conv);
}

}  // namespace resnet_fused::cuda
