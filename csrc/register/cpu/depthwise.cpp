// Schema and checks of the private op of csrc/cpu/depthwise/depthwise.h. Activations are dense channels_last.
#include "cpu/depthwise/depthwise.h"

#include <cstdint>

#include "cpu/base/parallel.h"
#include "register/check.h"

namespace resnet_fused {
namespace {

void check_map(const Tensor& tensor, ScalarType type, const char* name) {
  STD_TORCH_CHECK((type == ScalarType::Float || type == ScalarType::BFloat16) && tensor.scalar_type() == type,
                  "depthwise_conv: ", name, " must be float32 or bfloat16, like x");
  STD_TORCH_CHECK(tensor.dim() == 4, "depthwise_conv: ", name, " must be [n, c, h, w]");
  STD_TORCH_CHECK(tensor.numel() == 0 || is_channels_last(tensor), "depthwise_conv: ", name,
                  " must be dense channels_last, but has strides ", Strides{tensor}, " for shape ", Shape{tensor});
}

void depthwise_conv(Tensor x, Tensor weight, Tensor shift, Tensor out, int64_t stride, int64_t padding,
                    int64_t function) {
  check_map(x, x.scalar_type(), "x");
  check_map(out, x.scalar_type(), "out");
  STD_TORCH_CHECK(weight.scalar_type() == ScalarType::Float && weight.is_contiguous() && weight.dim() == 3 &&
                      weight.size(0) == weight.size(1) && weight.size(2) == x.size(1),
                  "depthwise_conv: weight must be contiguous float32 [kernel, kernel, ", x.size(1), "], got ",
                  Shape{weight});
  const cpu::DepthwiseShape shape{x.size(0),      x.size(2), x.size(3), x.size(1),
                                  weight.size(0), stride,    padding,   x.scalar_type() == ScalarType::BFloat16};
  STD_TORCH_CHECK(cpu::depthwise_is_able(shape.kernel, stride),
                  "depthwise_conv: kernel must be 3 or 5 and stride 1 or 2, got ", shape.kernel, " and ", stride);
  STD_TORCH_CHECK(
      padding >= 0 && shape.c > 0 && shape.h + 2 * padding >= shape.kernel && shape.w + 2 * padding >= shape.kernel,
      "depthwise_conv: no output pixel or channel");
  STD_TORCH_CHECK(
      out.size(0) == shape.n && out.size(1) == shape.c && out.size(2) == shape.p() && out.size(3) == shape.q(),
      "depthwise_conv: out has shape ", Shape{out}, " for x of ", Shape{x});
  STD_TORCH_CHECK(shift.scalar_type() == ScalarType::Float && shift.is_contiguous() && shift.numel() == shape.c,
                  "depthwise_conv: shift must be contiguous float32 of ", shape.c, " values");
  STD_TORCH_CHECK(cpu::is_pointwise(function), "depthwise_conv: activation is ", function, ", but the kernel has 0 to ",
                  static_cast<int>(cpu::Pointwise::count) - 1);
  if (out.numel() == 0) return;
  STD_TORCH_CHECK(x.const_data_ptr() != out.const_data_ptr(), "depthwise_conv: out must not be x");
  const int slots = cpu::num_threads();
  const cpu::Loop loop =
      cpu::depthwise_loop(shape, x.const_data_ptr(), weight.const_data_ptr<float>(), shift.const_data_ptr<float>(),
                          static_cast<cpu::Pointwise>(function), out.mutable_data_ptr(), slots);
  cpu::run_loops({loop}, slots);
}

}  // namespace
}  // namespace resnet_fused

STABLE_TORCH_LIBRARY_FRAGMENT(resnet_fused_native, library) {
  library.def(
      "depthwise_conv(Tensor x, Tensor weight, Tensor shift, Tensor(a!) out, int stride, int padding, int function) -> "
      "()");
}

STABLE_TORCH_LIBRARY_IMPL(resnet_fused_native, CPU, library) {
  library.impl("depthwise_conv", TORCH_BOX(&resnet_fused::depthwise_conv));
}
