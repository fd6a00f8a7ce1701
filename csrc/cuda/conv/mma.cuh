// One k-step of a warp: accumulators += A tile * B tile, both in shared memory.
//
// A thread's accumulators are those of mma.m16n8. With g = lane / 4 and t = lane % 4, acc[i][j] holds rows 16 i + g and
// 16 i + g + 8, columns 8 j + 2 t and 8 j + 2 t + 1 of its warp's tile (in pairs, row g first). IEEE float32 uses the
// same layout, so all types share one epilogue.
#pragma once

#include "cuda/conv/tile.cuh"

namespace resnet_fused::cuda {

template <class Tile>
struct Accumulators {
  float v[Tile::kFragmentsM][Tile::kFragmentsN][4];
};

template <class Tile>
__device__ __forceinline__ int warp_row() {
  return ptx::warp() % Tile::kShape.warps_m * Tile::kWarpM;
}
template <class Tile>
__device__ __forceinline__ int warp_column() {
  return ptx::warp() / Tile::kShape.warps_m * Tile::kWarpN;
}

template <class Math>
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (Math::kMath == ConvMath::tf32) {
    ptx::mma_m16n8k8_tf32(d, a, b);
  } else {
    ptx::mma_m16n8k16<typename Math::Element>(d, a, b);
  }
}

// The tensor core would truncate float32 operands to TF32. Rounding the operands halves the error.
template <class Math, int N>
__device__ __forceinline__ void round_operand(uint32_t (&r)[N]) {
  if constexpr (Math::kMath == ConvMath::tf32) {
    for (int i = 0; i < N; ++i) r[i] = ptx::to_tf32(ptx::bit_cast<float>(r[i]));
  }
}

// Fragments of 16 rows of A. The matrices are rows 0-7 and 8-15 of the low 16 bytes of k, then rows 0-7 and 8-15 of the
// high 16 bytes. `address` is that of row lane % 16, 16-byte half lane / 16.
template <class Math>
__device__ __forceinline__ void load_a(uint32_t (&a)[4], uint32_t address) {
  ptx::ldmatrix_x4(a, address);
  round_operand<Math>(a);
}
// Fragments of 16 channels of B: the low and high 16 bytes of k of channels 0-7, then of channels 8-15. `address` is
// that of channel lane % 8 + lane / 16 * 8, half lane / 8 % 2.
template <class Math>
__device__ __forceinline__ void load_b(uint32_t (&first)[2], uint32_t (&second)[2], uint32_t address) {
  uint32_t r[4];
  ptx::ldmatrix_x4(r, address);
  round_operand<Math>(r);
  first[0] = r[0], first[1] = r[1], second[0] = r[2], second[1] = r[3];
}

template <class Tile>
__device__ __forceinline__ void multiply_step(Accumulators<Tile>& acc, uint32_t a_tile, uint32_t b_tile) {
  if constexpr (Tile::Math::kMath == ConvMath::f32) {
    const int g = ptx::lane() / 4, t = ptx::lane() % 4;
    using Chunk = ptx::Vec<float, 4>;
#pragma unroll 1  // in an unrolled loop ptxas hoists the loads of all chunks and spills
    for (int chunk = 0; chunk < 8; ++chunk) {
      Chunk b[Tile::kFragmentsN][2];
#pragma unroll
      for (int j = 0; j < Tile::kFragmentsN; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          b[j][e] = ptx::ld_shared<Chunk>(b_tile + (warp_column<Tile>() + 8 * j) * kConvStepBytes +
                                          swizzled(2 * t + e, chunk));
        }
      }
#pragma unroll
      for (int i = 0; i < 2 * Tile::kFragmentsM; ++i) {
        const Chunk a =
            ptx::ld_shared<Chunk>(a_tile + (warp_row<Tile>() + 8 * i) * kConvStepBytes + swizzled(g, chunk));
#pragma unroll
        for (int j = 0; j < Tile::kFragmentsN; ++j) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& sum = acc.v[i / 2][j][i % 2 * 2 + e];
#pragma unroll
            for (int k = 0; k < 4; ++k) sum = ptx::fma(a.v[k], b[j][e].v[k], sum);
          }
        }
      }
    }
  } else {
    using Math = typename Tile::Math;
    const int lane = ptx::lane();
    const uint32_t a_warp = a_tile + warp_row<Tile>() * kConvStepBytes;
    const uint32_t b_warp = b_tile + warp_column<Tile>() * kConvStepBytes;
    // There are four 32-byte slices of k. A's fragments are loaded one at a time: ptxas would hoist as many ldmatrix as
    // registers allow.
#pragma unroll
    for (int slice = 0; slice < 4; ++slice) {
      const uint32_t a_lane = a_warp + swizzled(lane % 16, 2 * slice + lane / 16);
      const uint32_t b_lane = b_warp + swizzled(lane % 8 + lane / 16 * 8, 2 * slice + lane / 8 % 2);
      uint32_t b[Tile::kFragmentsN][2];
#pragma unroll
      for (int j = 0; j < Tile::kFragmentsN; j += 2) load_b<Math>(b[j], b[j + 1], b_lane + 8 * j * kConvStepBytes);
#pragma unroll
      for (int i = 0; i < Tile::kFragmentsM; ++i) {
        uint32_t a[4];
        load_a<Math>(a, a_lane + 16 * i * kConvStepBytes);
#pragma unroll
        for (int j = 0; j < Tile::kFragmentsN; ++j) mma<Math>(acc.v[i][j], a, b[j]);
      }
    }
  }
}

}  // namespace resnet_fused::cuda
