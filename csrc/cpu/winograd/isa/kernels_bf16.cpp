// The kernels for bfloat16 activations.
#include <utility>

#include "cpu/base/dot_bf16.h"
#include "cpu/winograd/isa/gemm.h"
#include "cpu/winograd/isa/kernels.h"
#include "cpu/winograd/isa/transforms.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {
namespace {

template <int... kTilesMinusOne>
constexpr WinogradKernels kernels(std::integer_sequence<int, kTilesMinusOne...>) {
  return {
      kRows,  {nullptr, winograd_gemm<true, kTilesMinusOne + 1, 2>...}, winograd_transforms<bf16>(), nullptr, nullptr,
      nullptr};
}

}  // namespace

extern const WinogradKernels winograd_kernels_bf16 = kernels(std::make_integer_sequence<int, kRows>{});

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
