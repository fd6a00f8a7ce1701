// The functions of single values that may follow a folded convolution. The numbers are those of the schemas, and the
// first two are those of an Activation.
#pragma once

#include <cstdint>

namespace resnet_fused::cpu {

enum class Pointwise : int { none, relu, relu6, hardswish, silu, sigmoid, hardsigmoid, count };

constexpr bool is_pointwise(int64_t number) { return number >= 0 && number < static_cast<int64_t>(Pointwise::count); }

}  // namespace resnet_fused::cpu
