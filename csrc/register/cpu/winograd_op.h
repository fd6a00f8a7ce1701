// The live Winograd convolution for other ops. winograd.cpp says what it computes.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

namespace resnet_fused {

bool winograd_conv_bn_relu(torch::stable::Tensor x, torch::stable::Tensor weight, torch::stable::Tensor mean,
                           torch::stable::Tensor var, std::optional<torch::stable::Tensor> bn_weight,
                           std::optional<torch::stable::Tensor> bn_bias, std::optional<torch::stable::Tensor> residual,
                           torch::stable::Tensor out, int64_t padding, double eps, int64_t activation);

}  // namespace resnet_fused
