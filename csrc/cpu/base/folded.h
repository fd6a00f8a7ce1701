// What follows a convolution whose batch norm is folded into its weights and a shift.
#pragma once

#include "ops.h"

namespace resnet_fused::cpu {

// out = activation(sum + shift [+ residual]). shift: [k]; residual: like out, which it may be, or nullptr.
struct FoldedEpilogue {
  const float* shift;
  const void* residual;
  Activation activation;
};

}  // namespace resnet_fused::cpu
