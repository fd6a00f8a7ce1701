// A tile of sums passes through the pipeline's shared memory, from the fragments of the tensor cores to rows.
#pragma once

#include "cuda/conv/epilogue.cuh"
#include "cuda/conv/mma.cuh"

namespace resnet_fused::cuda {

// The fragments of a thread are scattered pairs, and global memory needs rows. A row has kN floats plus 8: the pairs of
// four rows then fall into different banks.
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

  // Channels 8 chunk .. 8 chunk + 7 of a row, by read(address). Half of the lanes read their upper half first, because
  // eight lanes at a distance of 32 bytes would use only half of the banks.
  template <class Read>
  __device__ static __forceinline__ void load_by(uint32_t smem, int row, int chunk, Sums (&sums)[2], Read read) {
    const int first = ptx::lane() / 4 % 2;
    const uint32_t at = smem + row * kRowBytes + chunk * 32;
    const Sums one = read(at + 16 * first), two = read(at + 16 * (1 - first));
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      sums[0].v[e] = first ? two.v[e] : one.v[e];
      sums[1].v[e] = first ? one.v[e] : two.v[e];
    }
  }
  __device__ static __forceinline__ void load(uint32_t smem, int row, int chunk, Sums (&sums)[2]) {
    load_by(smem, row, chunk, sums, [](uint32_t at) { return ptx::ld_shared<Sums>(at); });
  }
};

}  // namespace resnet_fused::cuda
