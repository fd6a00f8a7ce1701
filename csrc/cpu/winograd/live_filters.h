// The filters of a live network, in the layout of its weight.
#pragma once

#include <cstdint>

namespace resnet_fused::cpu {

// A weight [k, c, 3, 3] in any layout, from some k and c on. Strides are in floats.
struct WinogradFilters {
  const float* data;
  int64_t k_stride, c_stride, tap_stride;
};

}  // namespace resnet_fused::cpu
