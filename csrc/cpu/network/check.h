// Checks of the numbers that describe a network. They throw std::runtime_error.
#pragma once

#include "cpu/network/network.h"

namespace resnet_fused::cpu {

// Checks that no number to divide by is 0, and that each step's kernel can run the step.
void check_sizes(const Network& network);

// Checks that all places lie inside of their memory. `activations`: bytes of the arena. out_size: values of the result.
void check_places(const Network& network, const NetworkInput& x, int64_t activations, int64_t out_size);

}  // namespace resnet_fused::cpu
