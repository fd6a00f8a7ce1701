// Loads and stores of elements and per-channel parameters of any dtype, converted to and from float32.
#pragma once

#include "ops.h"
#include "ptx/ptx.cuh"

namespace resnet_fused::cuda {

// N neighbouring elements in one access. `p` is aligned to N * sizeof(T).
template <class T, int N>
using Elements = ptx::Vec<T, N>;

template <int N, class T>
__device__ __forceinline__ Elements<T, N> load(const T* p) {
  return ptx::ld_global<Elements<T, N>>(p);
}

// This is not a read-only load: one kernel reads the running statistics here and updates them afterwards.
template <class T>
__device__ __forceinline__ float parameter(const void* data, int64_t i) {
  return ptx::to_float(ptx::ld_global<T>(static_cast<const T*>(data) + i));
}

// Parameter of channel i, or `absent` where `channels` has no data.
__device__ __forceinline__ float parameter(const Channels& channels, int64_t i, float absent) {
  if (channels.data == nullptr) return absent;
  switch (channels.dtype) {
    case DType::f32:
      return parameter<float>(channels.data, i);
    case DType::f16:
      return parameter<ptx::f16>(channels.data, i);
    default:
      return parameter<ptx::bf16>(channels.data, i);
  }
}

__device__ __forceinline__ void set_parameter(const MutableChannels& channels, int64_t i, float value) {
  switch (channels.dtype) {
    case DType::f32:
      return ptx::st_global(static_cast<float*>(channels.data) + i, value);
    case DType::f16:
      return ptx::st_global(static_cast<ptx::f16*>(channels.data) + i, ptx::from_float<ptx::f16>(value));
    default:
      return ptx::st_global(static_cast<ptx::bf16*>(channels.data) + i, ptx::from_float<ptx::bf16>(value));
  }
}

__device__ __forceinline__ float inverse_deviation(const Norm& norm, int64_t channel) {
  const float var_or_invstd = parameter(norm.var_or_invstd, channel, 1.0f);
  return norm.has_var ? ptx::div(1.0f, ptx::sqrt(ptx::add(var_or_invstd, static_cast<float>(norm.eps))))
                      : var_or_invstd;
}

// weight * inverse_deviation for a pass over values of type T. The scale of a norm as it is born, 0.999995, becomes 1:
// gather_norm in csrc/cpu/base/norm.h says why.
template <class T>
__device__ __forceinline__ float scale_of(const Norm& norm, int64_t channel) {
  const float scale = ptx::mul(parameter(norm.weight, channel, 1.0f), inverse_deviation(norm, channel));
  if constexpr (sizeof(T) == sizeof(float)) {
    return scale;
  } else {
    constexpr float kNear = ptx::is_f16<T> ? 0x1p-17f : 0x1p-14f;
    const float rounded = ptx::to_float(ptx::from_float<T>(scale)), off = ptx::add(rounded, -scale);
    const float most = ptx::mul(kNear, rounded < 0.0f ? -rounded : rounded);
    const bool born =
        norm.has_var && parameter(norm.mean, channel, 0.0f) == 0.0f && parameter(norm.bias, channel, 0.0f) == 0.0f;
    return born && -most <= off && off <= most ? rounded : scale;
  }
}

// ReLU is a comparison instead of fmaxf: NaN stays NaN and -0.0 stays -0.0, as in torch.relu.
__device__ __forceinline__ float activate(float y, Activation activation) {
  return activation == Activation::relu ? (y < 0.0f ? 0.0f : y) : y;
}

// The gradient through a ReLU whose stored result is `out`. A NaN in `out` lets the gradient pass, as in torch. The
// function serves ReLU alone: the gradient of another activation may need the activation's input.
__device__ __forceinline__ float relu_gradient(float grad, float out) { return out <= 0.0f ? 0.0f : grad; }

// Calls body(T{}) with the element type of `dtype`.
template <class Body>
void with_type(DType dtype, Body body) {
  switch (dtype) {
    case DType::f32:
      return body(float{});
    case DType::f16:
      return body(ptx::f16{});
    case DType::bf16:
      return body(ptx::bf16{});
  }
}

inline bool aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace resnet_fused::cuda
