// out = activation((x - mean) * invstd * weight + bias [+ residual]), in float32, rounded once.
#pragma once

#include "cuda/base/walk.cuh"

namespace resnet_fused::cuda {

// `out` may be x or residual, so no load is a read-only load. The parameters are not one Epilogue: with it ptxas takes
// up to ten registers more (float32, contiguous, sm_100a; compiled by nvcc 13.0).
template <class T, int N, bool kPlanes>
__global__ void __launch_bounds__(kWalkThreads)
    bn_relu_kernel(Share share, const T* x, Norm norm, const T* residual, T* out, Activation activation) {
  using W = Walk<N, kPlanes>;
  constexpr int kUnroll = N == 1 ? 8 : 4;
  W walk(share);
  // The mean is subtracted first. A mean that is folded into the bias would cancel where |mean| is far above the
  // deviation.
  float constants[3][W::kChannels];
  channel_constants(share, walk, constants, [&](int64_t c) {
    const float scale = scale_of<T>(norm, c);
    return Constants<3>{{parameter(norm.mean, c, 0.0f), scale, parameter(norm.bias, c, 0.0f)}};
  });
  const auto& [mean, scale, bias] = constants;
  while (walk.more()) {
    Elements<T, N> in[kUnroll], skip[kUnroll];
    int64_t at[kUnroll];
    bool live[kUnroll];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      live[u] = walk.more();
      at[u] = walk.offset;
      if (live[u]) {
        in[u] = load<N>(x + at[u]);
        if (residual != nullptr) skip[u] = load<N>(residual + at[u]);
      }
      walk.next();
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (!live[u]) continue;
      Elements<T, N> to;
#pragma unroll
      for (int e = 0; e < N; ++e) {
        const int c = e % W::kChannels;
        float y = ptx::fma(ptx::add(ptx::to_float(in[u].v[e]), -mean[c]), scale[c], bias[c]);
        if (residual != nullptr) y = ptx::add(y, ptx::to_float(skip[u].v[e]));
        to.v[e] = ptx::from_float<T>(activate(y, activation));
      }
      ptx::st_global(out + at[u], to);
    }
  }
}

}  // namespace resnet_fused::cuda
