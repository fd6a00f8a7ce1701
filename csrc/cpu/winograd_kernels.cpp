#include "winograd_kernels.h"

#include <utility>

#include "winograd_filter.h"
#include "winograd_gemm.h"
#include "winograd_transforms.h"

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

extern const WinogradKernels winograd_kernels = kernels(std::make_integer_sequence<int, kRows>{});

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
