// Arguments of a convolution kernel: pointers, and the convolution in the units of the inner loop.
#pragma once

#include "cuda/conv/plan.h"
#include "ptx/ptx.cuh"

namespace resnet_fused::cuda {

struct ConvArgs {
  const void* x;
  const void* weight;
  Epilogue epilogue;
  void* out;
  float* partial;  // raw sums of a split [splits, padded_m, padded_n]; nullptr: there is one slice and no second kernel
  bool vector_out;
  int h, w, p, q, r, s, c, k, groups;  // c, k: channels per group
  int stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int pixel_units, group_units, filter_units;     // distances in x and weight, in the loader's units (load.cuh)
  int m, filter, steps, steps_per_split, splits;  // filter = r * s * c
  int tiles_n;
  int64_t padded_m, padded_n;
  // One k-step adds this to (r, s, c), with carries. The loop then needs no division.
  int step_r, step_s, step_c;

  __device__ __forceinline__ int64_t out_channels() const { return static_cast<int64_t>(k) * groups; }
};

struct ConvTensors {
  const void* x;
  const void* weight;
  Epilogue epilogue;
  void* out;

  bool aligned() const {
    const auto bits = [](const void* p) { return reinterpret_cast<uintptr_t>(p); };
    return (bits(x) | bits(weight) | bits(epilogue.residual) | bits(out)) % 16 == 0;
  }
};

inline ConvArgs conv_args(const ConvPlan& plan, DType dtype, const ConvTensors& at, const Convolution& conv,
                          int64_t images, void* scratch) {
  const TileShape& tile = shape_of(plan.tile);
  const int64_t step = kConvStepBytes / (dtype == DType::f32 ? 4 : 2);
  ConvArgs a{};
  a.x = at.x, a.weight = at.weight, a.epilogue = at.epilogue, a.out = at.out;
  a.partial = plan.splits > 1 && !plan.cluster ? static_cast<float*>(scratch) : nullptr;
  a.vector_out = at.aligned() && conv.k % 8 == 0;
  a.h = int(conv.h), a.w = int(conv.w), a.p = int(conv.p), a.q = int(conv.q), a.r = int(conv.r), a.s = int(conv.s);
  a.c = int(conv.c), a.k = int(conv.k), a.groups = int(conv.groups);
  a.stride_h = int(conv.stride_h), a.stride_w = int(conv.stride_w), a.pad_h = int(conv.pad_h),
  a.pad_w = int(conv.pad_w);
  a.dilation_h = int(conv.dilation_h), a.dilation_w = int(conv.dilation_w);
  const int unit = plan.vector ? (dtype == DType::f32 ? 4 : 8) : 1;
  a.pixel_units = int(conv.c * conv.groups / unit), a.group_units = int(conv.c / unit);
  a.filter_units = int(conv.r * conv.s * conv.c / unit);
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

// Calls body(args, number) for each launch. A batch that is too large for 32-bit counts takes several launches.
template <class Body>
void conv_launches(const ConvPlan& plan, DType dtype, ConvTensors at, const Convolution& conv, void* scratch,
                   Body body) {
  const int64_t element = dtype == DType::f32 ? 4 : 2;
  const int64_t x_bytes = plan.images * conv.h * conv.w * conv.c * conv.groups * element;
  const int64_t out_bytes = plan.images * conv.p * conv.q * conv.k * conv.groups * element;
  for (int64_t number = 0, left = conv.n; left > 0; ++number, left -= plan.images) {
    body(conv_args(plan, dtype, at, conv, left < plan.images ? left : plan.images, scratch), number);
    at.x = static_cast<const char*>(at.x) + x_bytes;
    at.out = static_cast<char*>(at.out) + out_bytes;
    const void*& residual = at.epilogue.residual;
    if (residual) residual = static_cast<const char*>(residual) + out_bytes;
  }
}

}  // namespace resnet_fused::cuda
