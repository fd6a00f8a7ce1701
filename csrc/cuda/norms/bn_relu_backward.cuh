// The gradient of [relu](bn(x) [+ residual]): per-channel sums, then the gradients of x and of the residual.
//
// g = relu && out <= 0 ? 0 : grad [+ grad2]. The mask comes from the stored output.
#pragma once

#include "cuda/base/partial.cuh"

namespace resnet_fused::cuda {

// The inputs of g. Absent inputs are nullptr and never read.
template <class T>
struct Gradient {
  const T *grad, *grad2, *out;
};

// The vectors of the gradient and of x that a thread has in flight.
template <class T, int N, int kUnroll>
struct Inputs {
  Elements<T, N> grad[kUnroll], grad2[kUnroll], x[kUnroll], out[kUnroll];
  int64_t at[kUnroll];
  bool live[kUnroll];

  template <class W>
  __device__ __forceinline__ void load_next(W& walk, const Gradient<T>& from, const T* from_x) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      live[u] = walk.more();
      at[u] = walk.offset;
      if (live[u]) {
        grad[u] = load<N>(from.grad + at[u]);
        if (from.grad2 != nullptr) grad2[u] = load<N>(from.grad2 + at[u]);
        if (from_x != nullptr) x[u] = load<N>(from_x + at[u]);
        if (from.out != nullptr) out[u] = load<N>(from.out + at[u]);
      }
      walk.next();
    }
  }

  __device__ __forceinline__ float masked(int u, int e, const Gradient<T>& from) const {
    float g = ptx::to_float(grad[u].v[e]);
    // The sum is rounded as it is stored and as the next pass reads it.
    if (from.grad2 != nullptr) g = ptx::to_float(ptx::from_float<T>(ptx::add(g, ptx::to_float(grad2[u].v[e]))));
    return from.out != nullptr ? relu_gradient(g, ptx::to_float(out[u].v[e])) : g;
  }
};

// First stage of sum_g = sum g and sum_gx = sum g * (x - mean) * invstd (x == nullptr: sum_g alone). stored = g, where
// it is wanted.
template <class T, int N, bool kPlanes>
__global__ void __launch_bounds__(kWalkThreads)
    bn_relu_backward_reduce_kernel(Share share, Gradient<T> from, const T* x, Norm norm, T* stored, float* scratch) {
  using W = Walk<N, kPlanes>;
  constexpr int kUnroll = N == 1 ? 4 : 2;
  W walk(share);
  float constants[1][W::kChannels];
  channel_constants(share, walk, constants,
                    [&](int64_t c) { return Constants<1>{{x != nullptr ? parameter(norm.mean, c, 0.0f) : 0.0f}}; });
  const auto& [mean] = constants;
  GradientSums<W::kChannels> total;
  while (walk.more()) {
    Inputs<T, N, kUnroll> in;
    in.load_next(walk, from, x);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (!in.live[u]) continue;
      Elements<T, N> to_stored;
#pragma unroll
      for (int e = 0; e < N; ++e) {
        const int c = e % W::kChannels;
        const float g = in.masked(u, e, from);
        to_stored.v[e] = ptx::from_float<T>(g);
        total.g[c] = ptx::add(total.g[c], g);
        if (x != nullptr) total.gx[c] = ptx::fma(g, ptx::add(ptx::to_float(in.x[u].v[e]), -mean[c]), total.gx[c]);
      }
      if (stored != nullptr) ptx::st_global(stored + in.at[u], to_stored);
    }
  }
  ptx::sync_threads();  // the merge uses the shared memory of the constants
  merge_block(total, walk.across, walk.along, share.wide, share.high, walk.active);
  if (walk.active && walk.along == 0) {
    float* to = scratch + static_cast<int64_t>(ptx::bid_y()) * 2 * share.channels + walk.channel;
#pragma unroll
    for (int c = 0; c < W::kChannels; ++c) {
      ptx::st_global(to + c, total.g[c]);
      ptx::st_global(to + share.channels + c, total.gx[c]);
    }
  }
}

// Second stage. invstd is constant over a channel, so it is multiplied with the sum and not with every term.
__global__ void __launch_bounds__(kMergeThreads)
    bn_relu_backward_merge_kernel(const float* scratch, int64_t chunks, int64_t channels, Norm norm, float* sum_g,
                                  float* sum_gx) {
  const int across = ptx::tid() % kMergeWide, along = ptx::tid() / kMergeWide;
  const int64_t c = static_cast<int64_t>(ptx::bid_x()) * kMergeWide + across;
  const bool active = c < channels;
  GradientSums<1> total;
  if (active) total = merge_chunks<GradientSums<1>>(scratch, chunks, channels, c, along);
  merge_block(total, across, along, kMergeWide, kMergeHigh, active);
  if (active && along == 0) {
    ptx::st_global(sum_g + c, total.g[0]);
    if (sum_gx != nullptr) ptx::st_global(sum_gx + c, ptx::mul(total.gx[0], inverse_deviation(norm, c)));
  }
}

// grad_residual = g, grad_x = scale * (g - shift - (x - mean) * slope). With frozen statistics shift and slope are 0
// and x is not read.
template <class T, int N, bool kPlanes>
__global__ void __launch_bounds__(kWalkThreads)
    bn_relu_backward_apply_kernel(Share share, Gradient<T> from, const T* x, Norm norm, const float* sum_g,
                                  const float* sum_gx, float count, T* grad_x, T* grad_residual) {
  using W = Walk<N, kPlanes>;
  constexpr int kUnroll = N == 1 ? 4 : 2;
  W walk(share);
  float constants[4][W::kChannels];
  channel_constants(share, walk, constants, [&](int64_t c) {
    Constants<4> k{};
    if (grad_x == nullptr) return k;
    const float invstd = inverse_deviation(norm, c);
    k.v[1] = ptx::mul(parameter(norm.weight, c, 1.0f), invstd);
    if (x == nullptr) return k;
    k.v[0] = parameter(norm.mean, c, 0.0f);
    k.v[2] = ptx::div(ptx::ld_global_nc<float>(sum_g + c), count);
    k.v[3] = ptx::mul(invstd, ptx::div(ptx::ld_global_nc<float>(sum_gx + c), count));
    return k;
  });
  const auto& [mean, scale, shift, slope] = constants;
  while (walk.more()) {
    Inputs<T, N, kUnroll> in;
    in.load_next(walk, from, x);
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      if (!in.live[u]) continue;
      Elements<T, N> to_x, to_residual;
#pragma unroll
      for (int e = 0; e < N; ++e) {
        const int c = e % W::kChannels;
        const float g = in.masked(u, e, from);
        to_residual.v[e] = ptx::from_float<T>(g);
        float centred = g;
        if (x != nullptr) {
          const float deviation = ptx::add(ptx::to_float(in.x[u].v[e]), -mean[c]);
          centred = ptx::fma(-deviation, slope[c], ptx::add(g, -shift[c]));
        }
        to_x.v[e] = ptx::from_float<T>(ptx::mul(scale[c], centred));
      }
      if (grad_x != nullptr) ptx::st_global(grad_x + in.at[u], to_x);
      if (grad_residual != nullptr) ptx::st_global(grad_residual + in.at[u], to_residual);
    }
  }
}

}  // namespace resnet_fused::cuda
