// out = f(a, b) for every element: the forward and the backward of relu(x + residual).
#pragma once

#include "cuda/base/elements.cuh"

namespace resnet_fused::cuda {

constexpr int kMapThreads = 256;
constexpr int kMapUnroll = 4;  // vectors of each input in flight per thread

struct AddRelu {
  static __device__ __forceinline__ float apply(float x, float residual) {
    return activate(ptx::add(x, residual), Activation::relu);
  }
};
struct Mask {
  static __device__ __forceinline__ float apply(float grad, float out) { return relu_gradient(grad, out); }
};

// `out` may be `a`: a thread reads its elements before it writes them, and no other thread touches them. Loads are not
// read-only loads, because the kernel may write the same memory.
template <class F, class T, int N>
__global__ void __launch_bounds__(kMapThreads) map_kernel(const T* a, const T* b, T* out, int64_t size) {
  const int64_t vectors = size / N;
  const int64_t stride = static_cast<int64_t>(ptx::grid_x()) * kMapThreads * kMapUnroll;
  for (int64_t first = static_cast<int64_t>(ptx::bid_x()) * kMapThreads * kMapUnroll + ptx::tid(); first < vectors;
       first += stride) {
    Elements<T, N> from_a[kMapUnroll], from_b[kMapUnroll];
#pragma unroll
    for (int u = 0; u < kMapUnroll; ++u) {
      const int64_t i = first + u * kMapThreads;
      if (i < vectors) {
        from_a[u] = load<N>(a + i * N);
        from_b[u] = load<N>(b + i * N);
      }
    }
#pragma unroll
    for (int u = 0; u < kMapUnroll; ++u) {
      const int64_t i = first + u * kMapThreads;
      if (i < vectors) {
        Elements<T, N> to;
#pragma unroll
        for (int e = 0; e < N; ++e) {
          to.v[e] = ptx::from_float<T>(F::apply(ptx::to_float(from_a[u].v[e]), ptx::to_float(from_b[u].v[e])));
        }
        ptx::st_global(out + i * N, to);
      }
    }
  }
  const int64_t rest = vectors * N + ptx::tid();  // fewer than N elements after the last whole vector
  if (ptx::bid_x() == 0 && rest < size) {
    const float x = ptx::to_float(ptx::ld_global<T>(a + rest)), y = ptx::to_float(ptx::ld_global<T>(b + rest));
    ptx::st_global(out + rest, ptx::from_float<T>(F::apply(x, y)));
  }
}

}  // namespace resnet_fused::cuda
