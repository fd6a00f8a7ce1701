// The contract of the strip convolution (strip.cuh), which runs on Hopper only: 3x3, stride 1, padding 1, 64 channels
// in and out. out = activation(bn(conv(x, weight)) [+ residual]) in float16 or bfloat16, accumulated and normalised in
// float32, rounded once.
#pragma once

#include <string>

#include "ops.h"

namespace resnet_fused::cuda {

// gradient: the op computes the gradient of a convolution's input. x is then the gradient of the output, out is the
// gradient of the input, and the weight is [c, r, s, k].
void conv_strip(DType dtype, const void* x, const void* weight, Epilogue epilogue, void* out, Convolution conv,
                bool gradient, void* stream);
// Why the current device cannot run conv_strip for this convolution, or "".
std::string conv_strip_refusal(DType dtype, Convolution conv);

}  // namespace resnet_fused::cuda
