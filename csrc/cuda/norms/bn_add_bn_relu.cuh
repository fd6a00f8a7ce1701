// out = relu(bn(x) + bn_z(z)) in float32, rounded once: the end of a residual block whose shortcut is a projection.
#pragma once

#include "cuda/base/walk.cuh"

namespace resnet_fused::cuda {

// `out` may be x or z, so no load is a read-only load.
template <class T, int N, bool kPlanes>
__global__ void __launch_bounds__(kWalkThreads)
    bn_add_bn_relu_kernel(Share share, const T* x, Norm norm, const T* z, Norm norm_z, T* out) {
  using W = Walk<N, kPlanes>;
  constexpr int kUnroll = N == 1 ? 4 : 2;
  W walk(share);
  float constants[5][W::kChannels];
  channel_constants(share, walk, constants, [&](int64_t c) {
    const float scale = scale_of<T>(norm, c);
    const float scale_z = scale_of<T>(norm_z, c);
    const float bias = ptx::add(parameter(norm.bias, c, 0.0f), parameter(norm_z.bias, c, 0.0f));
    return Constants<5>{{parameter(norm.mean, c, 0.0f), scale, parameter(norm_z.mean, c, 0.0f), scale_z, bias}};
  });
  const auto& [mean, scale, mean_z, scale_z, bias] = constants;
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
        skip[u] = load<N>(z + at[u]);
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
        const float y = ptx::fma(ptx::add(ptx::to_float(in[u].v[e]), -mean[c]), scale[c], bias[c]);
        const float both = ptx::fma(ptx::add(ptx::to_float(skip[u].v[e]), -mean_z[c]), scale_z[c], y);
        to.v[e] = ptx::from_float<T>(activate(both, Activation::relu));
      }
      ptx::st_global(out + at[u], to);
    }
  }
}

}  // namespace resnet_fused::cuda
