#include "winograd_kernels.h"

#include <utility>

#include "winograd_filter.h"
#include "winograd_gemm.h"
#include "winograd_transforms.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {
namespace {

// Sums + 2 weights + 1 broadcast: 31 of AVX-512's 32 registers, 15 of the 16 of AVX2 and SSE.
constexpr int kRows = kWidth == 16 ? 14 : 6;
static_assert(kRows <= kWinogradMaxRows);

template <int... kRowsMinusOne>
constexpr WinogradKernels kernels(std::integer_sequence<int, kRowsMinusOne...>) {
  return {kRows,
          {nullptr, winograd_gemm<kRowsMinusOne + 1, 2>...},
          winograd_input<2>,
          winograd_input<4>,
          winograd_gather,
          winograd_expand<2>,
          winograd_expand<4>,
          winograd_output<2>,
          winograd_output<4>};
}

}  // namespace

extern const WinogradKernels winograd_kernels = kernels(std::make_integer_sequence<int, kRows>{});

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
