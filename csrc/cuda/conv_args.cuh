// What a convolution kernel is told: pointers, and the convolution in the units its inner loop works in.
#pragma once

#include "../ptx/ptx.cuh"
#include "conv_plan.h"

namespace resnet_fused::cuda {

struct ConvArgs {
  const void* x;
  const void* weight;
  const void* residual;  // or nullptr
  void* out;
  float* partial;  // slices of a split: raw sums [splits, padded_m, padded_n]; nullptr: one slice, finished in place
  Norm norm;
  bool relu, vector_out;
  int h, w, p, q, r, s, c, k, groups;  // c, k: channels per group
  int stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int m, filter, steps, steps_per_split, splits;  // filter = r * s * c
  int tiles_n;
  int64_t padded_m, padded_n;
  // One k-step further is (r, s, c) + this, with carries: no division in the loop.
  int step_r, step_s, step_c;

  __device__ __forceinline__ int64_t x_channels() const { return static_cast<int64_t>(c) * groups; }
  __device__ __forceinline__ int64_t out_channels() const { return static_cast<int64_t>(k) * groups; }
};

inline ConvArgs conv_args(const ConvPlan& plan, DType dtype, const void* x, const void* weight, const Norm& norm,
                          const void* residual, void* out, const Conv& conv, int64_t images, bool relu, bool aligned,
                          void* scratch) {
  const TileShape& tile = shape_of(plan.tile);
  const int64_t step = kConvStepBytes / (dtype == DType::f32 ? 4 : 2);
  ConvArgs a{};
  a.x = x, a.weight = weight, a.residual = residual, a.out = out;
  a.partial = plan.splits > 1 ? static_cast<float*>(scratch) : nullptr;
  a.norm = norm;
  a.relu = relu;
  a.vector_out = aligned && conv.k % 8 == 0;
  a.h = int(conv.h), a.w = int(conv.w), a.p = int(conv.p), a.q = int(conv.q), a.r = int(conv.r), a.s = int(conv.s);
  a.c = int(conv.c), a.k = int(conv.k), a.groups = int(conv.groups);
  a.stride_h = conv.stride_h, a.stride_w = conv.stride_w, a.pad_h = conv.pad_h, a.pad_w = conv.pad_w;
  a.dilation_h = conv.dilation_h, a.dilation_w = conv.dilation_w;
  a.m = int(images * conv.p * conv.q);
  a.filter = int(conv.r * conv.s * conv.c);
  a.steps = plan.steps, a.steps_per_split = plan.steps_per_split, a.splits = plan.splits;
  a.tiles_n = int(plan.tiles_n);
  a.padded_m = plan.tiles_m * tile.m, a.padded_n = conv.groups * plan.tiles_n * tile.n;
  a.step_c = int(step % conv.c);
  a.step_s = int(step / conv.c % conv.s);
  a.step_r = int(step / conv.c / conv.s);
  return a;
}

}  // namespace resnet_fused::cuda
