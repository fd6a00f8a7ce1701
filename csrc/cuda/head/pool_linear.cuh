// The head of a network: out = mean of x over its pixels, times weight, plus bias. All arithmetic is float32 and rounds
// once (torch rounds the mean as well). Sums have a fixed order.
#pragma once

#include "cuda/base/elements.cuh"
#include "cuda/head/plan.h"

namespace resnet_fused::cuda {

struct HeadArgs {
  const void* x;
  const void* weight;
  const void* bias;  // or nullptr
  void* out;
  int64_t n, pixels;
  int c, k, outputs, parts;
};

// Shared memory holds float32 [part, image, piece, vector, 4]. A vector of N channels is stored in pieces of four
// channels: the lanes of a warp take neighbouring vectors and then read neighbouring pieces.
template <int N>
struct Pooled {
  static constexpr int kWide = N < 4 ? N : 4, kPieces = N / kWide;
  using Piece = ptx::Vec<float, kWide>;
  int vectors;

  __device__ __forceinline__ uint32_t at(int slot, int piece, int vector) const {
    return ptx::smem_base() + 4 * kWide * ((slot * kPieces + piece) * vectors + vector);
  }
  __device__ __forceinline__ void store(int slot, int vector, const float (&v)[N]) const {
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      Piece piece;
#pragma unroll
      for (int e = 0; e < kWide; ++e) piece.v[e] = v[p * kWide + e];
      ptx::st_shared(at(slot, p, vector), piece);
    }
  }
  __device__ __forceinline__ void load(int slot, int vector, float (&v)[N]) const {
#pragma unroll
    for (int p = 0; p < kPieces; ++p) {
      const Piece piece = ptx::ld_shared<Piece>(at(slot, p, vector));
#pragma unroll
      for (int e = 0; e < kWide; ++e) v[p * kWide + e] = piece.v[e];
    }
  }
};

// Computes the means of a block's images. Images past the last are zeros.
template <class T, int N, int kImages>
__device__ __forceinline__ void pool_images(const HeadArgs& a, const Pooled<N>& pooled, int64_t first) {
  const int items = kImages * pooled.vectors;
  for (int i = ptx::tid(); i < items * a.parts; i += kHeadThreads) {
    const int part = i / items, image = i % items / pooled.vectors, vector = i % pooled.vectors;
    float sum[N] = {};
    if (first + image < a.n) {
      const T* x = static_cast<const T*>(a.x) + (first + image) * a.pixels * a.c + vector * N;
#pragma unroll 7
      for (int64_t pixel = part; pixel < a.pixels; pixel += a.parts) {
        const auto v = ptx::ld_global_nc<Elements<T, N>>(x + pixel * a.c);
#pragma unroll
        for (int e = 0; e < N; ++e) sum[e] = ptx::add(sum[e], ptx::to_float(v.v[e]));
      }
    }
    pooled.store(part * kImages + image, vector, sum);
  }
  ptx::sync_threads();
  const float pixels = static_cast<float>(a.pixels);
  for (int i = ptx::tid(); i < items; i += kHeadThreads) {
    const int image = i / pooled.vectors, vector = i % pooled.vectors;
    float sum[N];
    pooled.load(image, vector, sum);
    for (int part = 1; part < a.parts; ++part) {
      float more[N];
      pooled.load(part * kImages + image, vector, more);
#pragma unroll
      for (int e = 0; e < N; ++e) sum[e] = ptx::add(sum[e], more[e]);
    }
#pragma unroll
    for (int e = 0; e < N; ++e) sum[e] = ptx::div(sum[e], pixels);
    pooled.store(image, vector, sum);
  }
  ptx::sync_threads();
}

// Sums each of kCount values over the lanes of a warp. Lane l gets the total of value l * kCount / 32 in v[0]. In each
// round a lane hands half of its remaining values to its partner. That takes about kCount shuffles instead of five for
// every value.
template <int kCount, int kMask = 16, int kLeft = kCount>
__device__ __forceinline__ void sum_lanes(float (&v)[kCount]) {
  if constexpr (kMask > 0) {
    if constexpr (kLeft > 1) {
      const bool upper = ptx::lane() & kMask;
#pragma unroll
      for (int i = 0; i < kLeft / 2; ++i) {
        const float mine = upper ? v[i + kLeft / 2] : v[i], other = upper ? v[i] : v[i + kLeft / 2];
        v[i] = ptx::add(mine, ptx::shfl_xor(other, kMask));
      }
      sum_lanes<kCount, kMask / 2, kLeft / 2>(v);
    } else {
      v[0] = ptx::add(v[0], ptx::shfl_xor(v[0], kMask));
      sum_lanes<kCount, kMask / 2, 1>(v);
    }
  }
}

// Grid: x = outputs, y = images.
template <class T, int N, int kImages>
__global__ void __launch_bounds__(kHeadThreads, 4) pool_linear_kernel(const HeadArgs a) {
  const Pooled<N> pooled{a.c / N};
  const int64_t first = static_cast<int64_t>(ptx::bid_y()) * kImages;
  pool_images<T, N, kImages>(a, pooled, first);
  const T* weight = static_cast<const T*>(a.weight);
  const int begin = ptx::bid_x() * a.outputs, end = begin + a.outputs < a.k ? begin + a.outputs : a.k;
  for (int k = begin + ptx::warp() * kHeadRows; k < end; k += kHeadStep) {
    float sums[kHeadRows * kImages] = {};
    for (int vector = ptx::lane(); vector < pooled.vectors; vector += 32) {
      Elements<T, N> w[kHeadRows] = {};
#pragma unroll
      for (int row = 0; row < kHeadRows; ++row) {
        const int64_t at = static_cast<int64_t>(k + row) * a.c + vector * N;
        if (k + row < end) w[row] = ptx::ld_global_nc<Elements<T, N>>(weight + at);
      }
#pragma unroll
      for (int image = 0; image < kImages; ++image) {
        float mean[N];
        pooled.load(image, vector, mean);
#pragma unroll
        for (int row = 0; row < kHeadRows; ++row) {
          float& sum = sums[row * kImages + image];
#pragma unroll
          for (int e = 0; e < N; ++e) sum = ptx::fma(mean[e], ptx::to_float(w[row].v[e]), sum);
        }
      }
    }
    sum_lanes(sums);
    constexpr int kLanes = 32 / (kHeadRows * kImages);  // lanes with the same total
    const int value = ptx::lane() / kLanes, row = k + value / kImages;
    const int64_t image = first + value % kImages;
    if (ptx::lane() % kLanes == 0 && row < end && image < a.n) {
      const float bias = a.bias ? parameter<T>(a.bias, row) : 0.0f;
      ptx::st_global(static_cast<T*>(a.out) + image * a.k + row, ptx::from_float<T>(ptx::add(sums[0], bias)));
    }
  }
}

}  // namespace resnet_fused::cuda
