// Checks that every op with a convolution shares. They turn tensors into the plain numbers and pointers of ops.h.
#pragma once

#include "register/register.h"

namespace resnet_fused {

using Pair = std::vector<int64_t>;

// Checks the numbers of a convolution of x with a weight [k, c, r, s] whose channels fit. `args` words the messages
// about x.
inline Convolution numbers_of(const Arguments& args, const Tensor& x, int64_t k, int64_t c, int64_t r, int64_t s,
                              const Pair& stride, const Pair& padding, const Pair& dilation, int64_t groups) {
  args.require(stride.size() == 2 && padding.size() == 2 && dilation.size() == 2,
               "stride, padding and dilation must be pairs");
  constexpr int64_t kMost = 1 << 30;  // fits an int, with room for sums
  for (int i = 0; i < 2; ++i) {
    args.require(stride[i] > 0 && stride[i] < kMost, "stride must be positive, but is ", stride[i]);
    args.require(dilation[i] > 0 && dilation[i] < kMost, "dilation must be positive, but is ", dilation[i]);
    args.require(padding[i] >= 0 && padding[i] < kMost, "padding must not be negative, but is ", padding[i]);
  }
  const Convolution conv{x.size(0), x.size(2), x.size(3), c,          k / groups, r,           s,
                         groups,    stride[0], stride[1], padding[0], padding[1], dilation[0], dilation[1]};
  args.require(conv.p > 0 && conv.q > 0 && r > 0 && s > 0, "a kernel of ", r, "x", s, " does not fit into x of shape ",
               Shape{x});
  return conv;
}

// Checks x, weight and the numbers of a convolution. `args` words the messages about x.
inline Convolution conv_of(const Arguments& args, const Tensor& x, const Tensor& weight, const Pair& stride,
                           const Pair& padding, const Pair& dilation, int64_t groups) {
  args.require(x.dim() == 4 && weight.dim() == 4, "x has shape ", Shape{x}, " and weight ", Shape{weight},
               ", but both must have 4 dimensions");
  args.require(is_channels_last(x), "x has strides ", Strides{x}, " for shape ", Shape{x},
               ", but must be channels_last");
  args.require(is_channels_last(weight), "weight has strides ", Strides{weight}, " for shape ", Shape{weight},
               ", but must be channels_last");
  args.same_device("weight", weight);
  args.require(args.float_type("weight", weight) == args.dtype(), "weight has another dtype than x");
  const int64_t k = weight.size(0), c = weight.size(1);
  args.require(groups > 0 && k % groups == 0 && x.size(1) == c * groups, "weight has shape ", Shape{weight},
               " and groups is ", groups, ", but x has ", x.size(1), " channels");
  return numbers_of(args, x, k, c, weight.size(2), weight.size(3), stride, padding, dilation, groups);
}

inline void check_output(const Arguments& x_args, const Arguments& args, const Tensor& out, int64_t n, int64_t k,
                         int64_t p, int64_t q) {
  x_args.same_device("out", out);
  args.require(args.dtype() == x_args.dtype(), "out has another dtype than x");
  args.require(out.dim() == 4 && out.size(0) == n && out.size(1) == k && out.size(2) == p && out.size(3) == q,
               "out has shape ", Shape{out}, ", but the result is [", n, ", ", k, ", ", p, ", ", q, "]");
  args.require(args.empty() || is_channels_last(out), "out has strides ", Strides{out}, " for shape ", Shape{out},
               ", but must be channels_last");
}

// Checks the alignment of memory that the copy engine reads, or that is written 16 bytes at a time.
inline void require_aligned(const Arguments& args, const char* name, const void* data) {
  args.require(reinterpret_cast<uintptr_t>(data) % 16 == 0, name, " does not begin at a multiple of 16 bytes");
}

inline Norm norm_of(const Arguments& args, const Tensor& mean, const Tensor& var, const OptionalTensor& weight,
                    const OptionalTensor& bias, double eps) {
  return {args.channels("mean", mean),        args.channels("var", var),     true, eps,
          args.channels("bn_weight", weight), args.channels("bn_bias", bias)};
}

inline Epilogue epilogue_of(const char* op, const Arguments& args, const Tensor& mean, const Tensor& var,
                            const OptionalTensor& weight, const OptionalTensor& bias, double eps,
                            const OptionalTensor& residual, int64_t activation) {
  return {norm_of(args, mean, var, weight, bias, eps), args.like("residual", residual),
          activation_of(op, activation, {Activation::none, Activation::relu})};
}

}  // namespace resnet_fused
