// All transforms of tiles, for activations of one dtype. This file is compiled once per instruction set (vec.h).
#pragma once

#include "cpu/winograd/isa/input.h"
#include "cpu/winograd/isa/output.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {

template <class T>
constexpr WinogradTransforms winograd_transforms() {
  return {winograd_input<2, 2, T>,
          {{winograd_input<4, 4, T>, winograd_input<4, 3, T>}, {winograd_input<3, 4, T>, winograd_input<3, 3, T>}},
          winograd_output<2, 2, T>,
          {{winograd_output<4, 4, T>, winograd_output<4, 3, T>}, {winograd_output<3, 4, T>, winograd_output<3, 3, T>}}};
}

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
