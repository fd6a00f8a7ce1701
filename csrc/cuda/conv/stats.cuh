// out = conv(x, weight), and the moments of the stored values per tile and channel. Batch statistics then need no other
// pass over the map.
#pragma once

#include "cuda/base/partial.cuh"
#include "cuda/conv/mainloop.cuh"
#include "cuda/conv/staging.cuh"

namespace resnet_fused::cuda {

// A mean is kept as an offset from one of the values. Where the mean is 1000 deviations from zero, float32 would round
// the mean itself by 3e-5 deviations, and the merge would square the differences of such means.
struct TileMoments {
  static constexpr int kWords = 4;
  float pivot = 0;
  Moments<1> about;  // count, mean - pivot, M2

  __device__ __forceinline__ Moments<1> about_pivot(float other) const {
    Moments<1> m = about;
    m.mean[0] =
        ptx::add(ptx::add(pivot, -other), m.mean[0]);  // the difference of two values of a channel is exact or small
    return m;
  }
};

// Where the moments are written: [chunks, kWords (pivot, count, offset, M2), channels]. A chunk is a row of tiles.
struct MomentsBuffer {
  float* data;
  int64_t first_chunk;  // first chunk of this launch
};

template <class Tile>
__device__ __forceinline__ void round_to_stored(Accumulators<Tile>& acc) {
  using Element = typename Tile::Element;
#pragma unroll
  for (int i = 0; i < Tile::kFragmentsM; ++i) {
#pragma unroll
    for (int j = 0; j < Tile::kFragmentsN; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) acc.v[i][j][e] = ptx::to_float(ptx::from_float<Element>(acc.v[i][j][e]));
    }
  }
}

// Moments of one half of the rows of a staged column.
template <class Tile>
__device__ __forceinline__ TileMoments column_moments(uint32_t column, int rows) {
  TileMoments m;
  if (rows <= 0) return m;
  m.pivot = ptx::ld_shared<float>(column);
  float sum = 0;
#pragma unroll 8
  for (int i = 1; i < rows; ++i) {
    sum = ptx::add(sum, ptx::add(ptx::ld_shared<float>(column + i * Staging<Tile>::kRowBytes), -m.pivot));
  }
  m.about.count = static_cast<float>(rows);
  const float mean = ptx::div(sum, m.about.count);
#pragma unroll 8
  for (int i = 0; i < rows; ++i) {
    const float d = ptx::add(ptx::add(ptx::ld_shared<float>(column + i * Staging<Tile>::kRowBytes), -m.pivot), -mean);
    m.about.m2[0] = ptx::fma(d, d, m.about.m2[0]);
  }
  m.about.mean[0] = mean;
  return m;
}

template <class Tile>
__device__ __forceinline__ void store_moments(const ConvArgs& args, const Place<Tile>& place, uint32_t smem,
                                              const MomentsBuffer& to) {
  static_assert(Tile::kThreads == 2 * Tile::kN, "two threads per channel");
  constexpr int kHalf = Tile::kM / 2;
  const int channel = ptx::tid() % Tile::kN, half = ptx::tid() / Tile::kN;
  const int left = args.m - place.m0 - half * kHalf;
  TileMoments mine =
      column_moments<Tile>(smem + half * kHalf * Staging<Tile>::kRowBytes + 4 * channel, left < kHalf ? left : kHalf);
  // The staged tile has been read and stored, so its memory now holds the moments of the second half.
  ptx::sync_threads();
  const uint32_t other = smem + 16 * channel;
  if (half == 1) {
    ptx::st_shared(other, ptx::Vec<float, 4>{{mine.pivot, mine.about.count, mine.about.mean[0], mine.about.m2[0]}});
  }
  ptx::sync_threads();
  if (half == 1 || place.n0 + channel >= args.k) return;
  const auto w = ptx::ld_shared<ptx::Vec<float, 4>>(other);
  TileMoments second;
  second.pivot = w.v[0], second.about.count = w.v[1], second.about.mean[0] = w.v[2], second.about.m2[0] = w.v[3];
  if (second.about.count > 0) mine.about.merge(second.about_pivot(mine.pivot));
  const int64_t channels = args.out_channels(), chunk = to.first_chunk + place.m0 / Tile::kM;
  float* at = to.data + chunk * TileMoments::kWords * channels + static_cast<int64_t>(place.group) * args.k + place.n0 +
              channel;
  ptx::st_global(at, mine.pivot);
  ptx::st_global(at + channels, mine.about.count);
  ptx::st_global(at + 2 * channels, mine.about.mean[0]);
  ptx::st_global(at + 3 * channels, mine.about.m2[0]);
}

template <class Tile>
__device__ __forceinline__ void store_rounded(const ConvArgs& args, uint32_t smem, const Place<Tile>& place) {
  using Element = typename Tile::Element;
  constexpr int kChunks = Tile::kN / 8;
  const int chunk = ptx::tid() % kChunks, n = place.n0 + 8 * chunk, valid = args.k - n;
  if (valid <= 0) return;
  Element* out = static_cast<Element*>(args.out) + static_cast<int64_t>(place.group) * args.k + n;
#pragma unroll 4
  for (int row = ptx::tid() / kChunks; row < Tile::kM; row += Tile::kThreads / kChunks) {
    if (place.m0 + row >= args.m) break;
    Sums sums[2];
    Staging<Tile>::load(smem, row, chunk, sums);
    Eight<Element> result{};
#pragma unroll
    for (int e = 0; e < 8; ++e) result[e] = ptx::from_float<Element>(sums[e / 4].v[e % 4]);
    store_eight(out + args.out_channels() * (place.m0 + row), result, args.vector_out, valid);
  }
}

// Grid: x = tile.
template <class Tile, bool kVector>
__global__ void __launch_bounds__(Tile::kThreads, kVector ? Tile::kShape.blocks : 2)
    conv_stats_kernel(const ConvArgs args, const MomentsBuffer moments) {
  const uint32_t smem = ptx::smem_base();
  Accumulators<Tile> acc = {};
  conv_sums<Tile, kVector>(args, smem, acc, 0, [](const Place<Tile>&) {});
  const Place<Tile> place(args, ptx::bid_x_again());
  round_to_stored<Tile>(acc);
  ptx::sync_threads();  // every warp has read the last step, whose memory becomes the staging area
  Staging<Tile>::store(smem, acc);
  ptx::sync_threads();
  store_rounded<Tile>(args, smem, place);
  store_moments<Tile>(args, place, smem, moments);
}

}  // namespace resnet_fused::cuda
