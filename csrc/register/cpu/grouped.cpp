// Schema and checks of the private op of csrc/cpu/grouped/grouped.h. Activations are dense channels_last.
#include "cpu/grouped/grouped.h"

#include <cstdint>

#include "cpu/base/parallel.h"
#include "register/check.h"

namespace resnet_fused {
namespace {

void check_map(const Tensor& tensor, ScalarType type, const char* name) {
  STD_TORCH_CHECK((type == ScalarType::Float || type == ScalarType::BFloat16) && tensor.scalar_type() == type,
                  "grouped_conv: ", name, " must be float32 or bfloat16, like x");
  STD_TORCH_CHECK(tensor.dim() == 4, "grouped_conv: ", name, " must be [n, c, h, w]");
  STD_TORCH_CHECK(tensor.numel() == 0 || is_channels_last(tensor), "grouped_conv: ", name,
                  " must be dense channels_last, but has strides ", Strides{tensor}, " for shape ", Shape{tensor});
}

void grouped_conv(Tensor x, Tensor weight, Tensor shift, Tensor out, int64_t width, int64_t stride, int64_t padding,
                  int64_t function) {
  check_map(x, x.scalar_type(), "x");
  check_map(out, x.scalar_type(), "out");
  const cpu::GroupedShape shape{x.size(0), x.size(2), x.size(3), x.size(1),
                                width,     stride,    padding,   x.scalar_type() == ScalarType::BFloat16};
  STD_TORCH_CHECK(cpu::grouped_is_able(shape.c, width, stride),
                  "grouped_conv: needs groups of 4, of 8 or of an even number of channels from 16 on, 16 channels or "
                  "more, and stride 1 or 2, got groups of ",
                  width, " of ", shape.c, " channels and stride ", stride);
  STD_TORCH_CHECK(padding >= 0 && shape.h + 2 * padding >= 3 && shape.w + 2 * padding >= 3,
                  "grouped_conv: no output pixel");
  STD_TORCH_CHECK(
      out.size(0) == shape.n && out.size(1) == shape.c && out.size(2) == shape.p() && out.size(3) == shape.q(),
      "grouped_conv: out has shape ", Shape{out}, " for x of ", Shape{x});
  STD_TORCH_CHECK(weight.scalar_type() == x.scalar_type() && weight.is_contiguous() &&
                      weight.numel() == cpu::grouped_packed_size(shape),
                  "grouped_conv: weight must be contiguous, of x's dtype, with ", cpu::grouped_packed_size(shape),
                  " values, got ", Shape{weight});
  STD_TORCH_CHECK(shift.scalar_type() == ScalarType::Float && shift.is_contiguous() && shift.numel() == shape.c,
                  "grouped_conv: shift must be contiguous float32 of ", shape.c, " values");
  STD_TORCH_CHECK(cpu::is_pointwise(function), "grouped_conv: activation is ", function, ", but the kernel has 0 to ",
                  static_cast<int>(cpu::Pointwise::count) - 1);
  if (out.numel() == 0) return;
  STD_TORCH_CHECK(x.const_data_ptr() != out.const_data_ptr(), "grouped_conv: out must not be x");
  const int slots = cpu::num_threads();
  constexpr int64_t kLine = 64;  // bytes: the workspace starts on a cache line
  const Tensor workspace = torch::stable::new_empty(
      x, {(cpu::grouped_workspace_size(shape, slots) + kLine) / static_cast<int64_t>(sizeof(uint16_t))},
      ScalarType::BFloat16);
  const auto address = reinterpret_cast<uintptr_t>(workspace.mutable_data_ptr());
  const cpu::Loop loop =
      cpu::grouped_loop(shape, x.const_data_ptr(), weight.const_data_ptr(), shift.const_data_ptr<float>(),
                        static_cast<cpu::Pointwise>(function), out.mutable_data_ptr(),
                        reinterpret_cast<char*>((address + kLine - 1) / kLine * kLine), slots);
  cpu::run_loops({loop}, slots);
}

}  // namespace
}  // namespace resnet_fused

STABLE_TORCH_LIBRARY_FRAGMENT(resnet_fused_native, library) {
  library.def(
      "grouped_conv(Tensor x, Tensor weight, Tensor shift, Tensor(a!) out, int width, int stride, int padding, "
      "int function) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(resnet_fused_native, CPU, library) {
  library.impl("grouped_conv", TORCH_BOX(&resnet_fused::grouped_conv));
}
