// Single values of a map as floats. uint16_t stands for bfloat16.
#pragma once

#include "cpu/base/bf16.h"

namespace resnet_fused::cpu {

template <class From>
float value_of(From value) {
  if constexpr (sizeof(From) == 2) {
    return float_of(value);
  } else {
    return value;
  }
}
template <class To>
To from_value(float value) {
  if constexpr (sizeof(To) == 2) {
    return bf16_of(value);
  } else {
    return value;
  }
}

}  // namespace resnet_fused::cpu
