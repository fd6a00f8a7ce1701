// Schemas and checks of the private ops of csrc/cpu/network/network.h.
#include "cpu/network/network.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "cpu/base/pages.h"

namespace resnet_fused {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kNumbers = sizeof(cpu::Step) / sizeof(int64_t), kLine = 64;

cpu::Network network_of(const Tensor& steps, bool bf16) {
  STD_TORCH_CHECK(steps.scalar_type() == ScalarType::Long && steps.is_contiguous() && steps.numel() > 0 &&
                      steps.numel() % kNumbers == 0,
                  "frozen_network: steps must be contiguous int64, ", kNumbers, " for each");
  return {reinterpret_cast<const cpu::Step*>(steps.const_data_ptr<int64_t>()), steps.numel() / kNumbers, bf16, nullptr,
          0};
}

char* bytes_of(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Byte && tensor.is_contiguous(), "frozen_network: ", name,
                  " must be contiguous uint8");
  return static_cast<char*>(tensor.mutable_data_ptr());
}

int64_t frozen_network_workspace(Tensor steps, bool bf16) {
  return cpu::network_workspace(network_of(steps, bf16)) + 2 * kLine;
}

void large_pages(Tensor memory) { cpu::prefer_large_pages(bytes_of(memory, "memory"), memory.numel()); }

void frozen_network(Tensor x, Tensor constants, Tensor steps, Tensor arena, int64_t activations, Tensor out) {
  const bool bf16 = out.scalar_type() == ScalarType::BFloat16, x_bf16 = x.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK((bf16 || out.scalar_type() == ScalarType::Float) && out.is_contiguous(),
                  "frozen_network: out must be contiguous, float32 or bfloat16");
  STD_TORCH_CHECK(x.dim() == 4 && (x.scalar_type() == ScalarType::Float || (bf16 && x_bf16)),
                  "frozen_network: x must be [n, c, h, w], float32 or bfloat16 like out");
  cpu::Network network = network_of(steps, bf16);
  network.constants = bytes_of(constants, "constants");
  network.constants_size = constants.numel();
  const auto begin = reinterpret_cast<uintptr_t>(bytes_of(arena, "arena"));
  const uintptr_t aligned = (begin + kLine - 1) / kLine * kLine,
                  workspace = (aligned + activations + kLine - 1) / kLine * kLine;
  STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(network.constants) % kLine == 0,
                  "frozen_network: constants must start on a cache line");
  STD_TORCH_CHECK(activations >= 0 && workspace + cpu::network_workspace(network) <= begin + arena.numel(),
                  "frozen_network: the arena is too small; the number of threads may have changed");
  const cpu::NetworkInput input{x.const_data_ptr(),
                                x_bf16,
                                {x.size(0), x.size(1), x.size(2), x.size(3)},
                                {x.stride(0), x.stride(1), x.stride(2), x.stride(3)}};
  cpu::network_run(network, input, reinterpret_cast<char*>(aligned), activations, reinterpret_cast<char*>(workspace),
                   out.mutable_data_ptr(), out.numel() * (bf16 ? 2 : 4));
}

}  // namespace
}  // namespace resnet_fused

STABLE_TORCH_LIBRARY_FRAGMENT(resnet_fused_native, library) {
  library.def("frozen_network_workspace(Tensor steps, bool bf16) -> int");
  library.def("large_pages(Tensor memory) -> ()");
  library.def(
      "frozen_network(Tensor x, Tensor constants, Tensor steps, Tensor(a!) arena, int activations, Tensor(b!) out) "
      "-> ()");
}

STABLE_TORCH_LIBRARY_IMPL(resnet_fused_native, CPU, library) {
  library.impl("frozen_network_workspace", TORCH_BOX(&resnet_fused::frozen_network_workspace));
  library.impl("large_pages", TORCH_BOX(&resnet_fused::large_pages));
  library.impl("frozen_network", TORCH_BOX(&resnet_fused::frozen_network));
}
