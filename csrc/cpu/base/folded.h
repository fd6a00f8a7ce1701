// The steps after a convolution whose batch norm is folded into its weights and a shift.
#pragma once

#include "cpu/base/pointwise.h"
#include "ops.h"

namespace resnet_fused::cpu {

// out = activation(sum + shift [+ residual]). shift: [k]. residual: nullptr, or values like out; it may be out.
struct FoldedEpilogue {
  const float* shift;
  const void* residual;
  Pointwise activation;
};

}  // namespace resnet_fused::cpu
