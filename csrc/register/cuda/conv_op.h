// The fused convolutions as functions, for the ops that run several of them (block.cpp).
#pragma once

#include "register/cuda/conv.h"

namespace resnet_fused {

// out = activation(bn(conv(x, weight)) [+ residual]) by the choice with the best prediction.
void run_conv_bn_relu(const Tensor& x, const Tensor& weight, const Tensor& mean, const Tensor& var,
                      const OptionalTensor& bn_weight, const OptionalTensor& bn_bias, const OptionalTensor& residual,
                      const Tensor& out, const Pair& stride, const Pair& padding, const Pair& dilation, int64_t groups,
                      double eps, Activation activation, bool allow_tf32);

// The first convolution of a block with ReLU, and its projection without: out and out2 from one x.
void run_conv_bn_relu_pair(const Tensor& x, const Tensor& weight, const Tensor& mean, const Tensor& var,
                           const OptionalTensor& bn_weight, const OptionalTensor& bn_bias, const Tensor& out,
                           const Pair& stride, const Pair& padding, const Pair& dilation, double eps,
                           const Tensor& weight2, const Tensor& mean2, const Tensor& var2,
                           const OptionalTensor& bn_weight2, const OptionalTensor& bn_bias2, const Tensor& out2,
                           const Pair& stride2, const Pair& padding2, double eps2, bool allow_tf32);

}  // namespace resnet_fused
