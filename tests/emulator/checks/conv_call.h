// A convolution as Python passes it through ctypes (tests/support/conv_emulated.py).
#pragma once

#include <exception>
#include <string>

#include "ops.h"

using namespace resnet_fused;

#define EXPORTED extern "C" __attribute__((visibility("default")))

struct ConvCall {
  const void *x, *weight, *mean, *var, *bn_weight, *bn_bias, *residual;
  void* out;
  int64_t dtype, param_dtype;
  int64_t n, h, w, c, k, r, s, p, q, groups, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int64_t activation, allow_tf32, aligned;
  int64_t tile, splits, images;  // -1, 0, 0: the choice of the plan; images: per launch
  int64_t cluster, early_weights;
  int64_t seed, policy;
  double eps;
};

inline Convolution conv_of(const ConvCall& a) {
  return {a.n,      a.h,        a.w,        a.c,     a.k,     a.r,          a.s,
          a.groups, a.stride_h, a.stride_w, a.pad_h, a.pad_w, a.dilation_h, a.dilation_w};
}

inline Norm norm_of(const ConvCall& a) {
  const DType p = static_cast<DType>(a.param_dtype);
  return {{a.mean, p}, {a.var, p}, true, a.eps, {a.bn_weight, p}, {a.bn_bias, p}};
}

// Without var there is no norm.
inline Epilogue epilogue_of(const ConvCall& a) {
  return {a.var ? norm_of(a) : Norm{}, a.residual, static_cast<Activation>(a.activation)};
}

// Runs `body`. Returns nullptr, or the error message, which is valid until the next call.
template <class Body>
const char* guarded(Body body) {
  static std::string why;
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    why = error.what();
    return why.c_str();
  }
}
