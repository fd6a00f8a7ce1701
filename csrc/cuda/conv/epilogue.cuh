// From sums to output: activation((sum - mean) * scale + bias [+ residual]) in float32, rounded once.
//
// scale = weight / sqrt(var + eps). The mean is subtracted before the product. The form sum * scale + (bias - mean *
// scale) would save an addition, but it would cancel where |mean| is much larger than the deviation.
#pragma once

#include "cuda/base/elements.cuh"
#include "cuda/conv/args.cuh"
#include "cuda/conv/tile.cuh"

namespace resnet_fused::cuda {

// Writes mean, scale and bias of kCount channels from `first` on to shared memory [3, kCount]. Channels past `end` are
// zeros.
template <int kCount>
__device__ __forceinline__ void stage_norm(const Norm& norm, uint32_t smem, int64_t first, int64_t end) {
  for (int i = ptx::tid(); i < kCount; i += ptx::threads()) {
    float mean = 0, scale = 0, bias = 0;
    const int64_t channel = first + i;
    if (channel < end) {
      mean = parameter(norm.mean, channel, 0.0f);
      scale = ptx::mul(parameter(norm.weight, channel, 1.0f), inverse_deviation(norm, channel));
      bias = parameter(norm.bias, channel, 0.0f);
    }
    ptx::st_shared(smem + 4 * i, mean);
    ptx::st_shared(smem + 4 * (kCount + i), scale);
    ptx::st_shared(smem + 4 * (2 * kCount + i), bias);
  }
}

using Sums = ptx::Vec<float, 4>;  // two of these hold eight channels

template <class Element>
struct Eight {  // eight consecutive channels of one pixel, as stored
  static constexpr int kPieces = sizeof(Element) / 2;
  ptx::Vec<Element, 8 / kPieces> piece[kPieces];

  __device__ __forceinline__ Element& operator[](int e) { return piece[e * kPieces / 8].v[e % (8 / kPieces)]; }
};

template <bool kReadOnly, class T>
__device__ __forceinline__ T load_once(const void* p) {
  if constexpr (kReadOnly) {
    return ptx::ld_global_nc<T>(p);
  } else {
    return ptx::ld_global<T>(p);
  }
}

// The residual's eight channels at `at`, or the first `valid` of them where the output is not vector_out. Without
// kReadOnly another kernel may have written them after this kernel began.
template <class Element, bool kReadOnly = true>
__device__ __forceinline__ Eight<Element> load_residual(const ConvArgs& a, int64_t at, int valid) {
  const Element* residual = static_cast<const Element*>(a.epilogue.residual) + at;
  Eight<Element> r{};
  if (a.vector_out) {
#pragma unroll
    for (int i = 0; i < r.kPieces; ++i) {
      r.piece[i] = load_once<kReadOnly, ptx::Vec<Element, 8 / r.kPieces>>(residual + i * (8 / r.kPieces));
    }
  } else {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      if (e < valid) r[e] = load_once<kReadOnly, Element>(residual + e);
    }
  }
  return r;
}

// Stores eight channels in one access, or the first `valid` of them one by one.
template <class Element>
__device__ __forceinline__ void store_eight(Element* out, Eight<Element>& result, bool vector_out, int valid) {
  if (vector_out) {
#pragma unroll
    for (int i = 0; i < result.kPieces; ++i) ptx::st_global(out + i * (8 / result.kPieces), result.piece[i]);
  } else {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      if (e < valid) ptx::st_global(out + e, result[e]);
    }
  }
}

// `norm`: shared address of the mean of this chunk's channels. The scale lies kCount floats further, the bias 2 *
// kCount.
template <class Element, int kCount>
__device__ __forceinline__ void finish(const ConvArgs& a, uint32_t norm, const Sums (&sums)[2], Eight<Element> residual,
                                       int64_t at, int valid) {
  Eight<Element> result{};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const Sums mean = ptx::ld_shared<Sums>(norm + 16 * half);
    const Sums scale = ptx::ld_shared<Sums>(norm + 4 * kCount + 16 * half);
    const Sums bias = ptx::ld_shared<Sums>(norm + 8 * kCount + 16 * half);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      float y = ptx::fma(ptx::add(sums[half].v[e], -mean.v[e]), scale.v[e], bias.v[e]);
      if (a.epilogue.residual) y = ptx::add(y, ptx::to_float(residual[4 * half + e]));
      result[4 * half + e] = ptx::from_float<Element>(activate(y, a.epilogue.activation));
    }
  }
  store_eight(static_cast<Element*>(a.out) + at, result, a.vector_out, valid);
}

}  // namespace resnet_fused::cuda
