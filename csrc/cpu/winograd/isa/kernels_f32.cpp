// The kernels for float32 activations.
#include <utility>

#include "cpu/winograd/isa/filter_transform.h"
#include "cpu/winograd/isa/gemm.h"
#include "cpu/winograd/isa/kernels.h"
#include "cpu/winograd/isa/transforms.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {
namespace {

template <int... kRowsMinusOne>
constexpr WinogradKernels kernels(std::integer_sequence<int, kRowsMinusOne...>) {
  return {kRows,
          {nullptr, winograd_gemm<false, kRowsMinusOne + 1, 2>...},
          winograd_transforms<float>(),
          winograd_gather,
          winograd_expand<2>,
          winograd_expand<4>};
}

}  // namespace

extern const WinogradKernels winograd_kernels_f32 = kernels(std::make_integer_sequence<int, kRows>{});

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
