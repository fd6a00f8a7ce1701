// The types of a convolution kernel: Math is what multiplies, Tile is how a block's tile is divided.
#pragma once

#include "cuda/conv/plan.h"
#include "ptx/ptx.cuh"

namespace resnet_fused::cuda {

// Shared memory holds operands as rows of 128 bytes: one row per pixel (A) or output channel (B), with k along the row.
// In bytes, the m16n8k16 fragments of 16-bit types equal the m16n8k8 fragments of TF32. One loader, one swizzle and one
// ldmatrix pattern therefore serve all types.
struct MathF16 {
  using Element = ptx::f16;
  static constexpr ConvMath kMath = ConvMath::f16;
};
struct MathBF16 {
  using Element = ptx::bf16;
  static constexpr ConvMath kMath = ConvMath::bf16;
};
struct MathTF32 {
  using Element = float;
  static constexpr ConvMath kMath = ConvMath::tf32;
};
struct MathF32 {  // IEEE arithmetic without tensor cores: fused multiply-add in the order of k
  using Element = float;
  static constexpr ConvMath kMath = ConvMath::f32;
};

template <class MathType, ConvTile kTile>
struct Tile {
  using Math = MathType;
  using Element = typename Math::Element;
  static constexpr TileShape kShape = shape_of(kTile);
  static constexpr int kM = kShape.m, kN = kShape.n, kStages = kShape.stages, kThreads = kShape.threads();
  static constexpr int kChunk = 16 / sizeof(Element);             // elements of one 16-byte copy
  static constexpr int kStep = kConvStepBytes / sizeof(Element);  // elements of k per step
  static constexpr int kWarpM = kM / kShape.warps_m, kWarpN = kN / kShape.warps_n;
  static constexpr int kFragmentsM = kWarpM / 16, kFragmentsN = kWarpN / 8;
  static constexpr int kRowsPerPass = kThreads / 8;  // eight copies fill a row
  static constexpr int kStageBytes = kShape.stage_bytes(), kNormOffset = kStages * kStageBytes;

  static_assert(kRowsPerPass % 8 == 0 && kM % kRowsPerPass == 0 && kN % kRowsPerPass == 0, "whole passes");
  static_assert(kFragmentsN % 2 == 0, "ldmatrix.x4 brings two fragments of B");
};

// Chunk c (16 bytes) of row r lies at chunk c ^ (r % 8). Eight rows at one c, and eight c of one row, then use all
// banks.
__device__ __forceinline__ uint32_t swizzled(int row, int chunk) {
  return static_cast<uint32_t>(row * kConvStepBytes + ((chunk ^ (row & 7)) << 4));
}

}  // namespace resnet_fused::cuda
