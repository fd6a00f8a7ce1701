// The private ops around csrc/cpu/amx.h: schemas and checks. Activations are dense channels_last.
#include <cstdint>
#include <optional>

#include "check.h"
#include "cpu/amx.h"
#include "cpu/parallel.h"

namespace resnet_fused {
namespace {

constexpr int64_t kLine = 64;  // bytes: the workspace starts on a cache line

int parts_of(const Tensor& tensor, const char* name) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16, "amx: ", name,
                  " must be float32 or bfloat16");
  return type == ScalarType::Float ? 3 : 1;
}

void check_activation(const Tensor& tensor, int parts, const char* name) {
  STD_TORCH_CHECK(parts_of(tensor, name) == parts, "amx: ", name, " must have the dtype of x");
  STD_TORCH_CHECK(tensor.dim() == 4, "amx: ", name, " must be [n, c, h, w]");
  STD_TORCH_CHECK(tensor.numel() == 0 || is_channels_last(tensor), "amx: ", name,
                  " must be dense channels_last, but has strides ", Strides{tensor}, " for shape ", Shape{tensor});
}

Tensor amx_pack(Tensor weight) {
  cpu::AmxShape shape{};
  shape.parts = parts_of(weight, "weight");
  STD_TORCH_CHECK(weight.dim() == 4 && weight.is_contiguous() && weight.numel() > 0,
                  "amx: weight must be contiguous [k, c, kernel_h, kernel_w]");
  shape.k = weight.size(0), shape.c = weight.size(1), shape.kernel_h = weight.size(2), shape.kernel_w = weight.size(3);
  Tensor packed = torch::stable::new_empty(weight, {cpu::amx_packed_size(shape)}, ScalarType::BFloat16);
  cpu::amx_pack(shape, weight.const_data_ptr(), static_cast<uint16_t*>(packed.mutable_data_ptr()));
  return packed;
}

void amx_conv(Tensor x, Tensor packed, Tensor shift, std::optional<Tensor> residual, Tensor out, int64_t kernel_h,
              int64_t kernel_w, int64_t stride, int64_t padding, int64_t dilation, bool relu) {
  const int parts = parts_of(x, "x");
  check_activation(x, parts, "x");
  check_activation(out, parts, "out");
  STD_TORCH_CHECK(kernel_h > 0 && kernel_w > 0 && stride > 0 && padding >= 0 && dilation > 0,
                  "amx: kernel, stride and dilation must be positive, padding not negative");
  const cpu::AmxShape shape{x.size(0), x.size(2), x.size(3), x.size(1), out.size(1), kernel_h,
                            kernel_w,  stride,    padding,   dilation,  parts};
  STD_TORCH_CHECK(shape.c > 0 && shape.k > 0 && shape.h + 2 * padding > (kernel_h - 1) * dilation &&
                      shape.w + 2 * padding > (kernel_w - 1) * dilation,
                  "amx: no output pixel or channel");
  STD_TORCH_CHECK(out.size(0) == shape.n && out.size(2) == shape.out_h() && out.size(3) == shape.out_w(),
                  "amx: out has the wrong shape");
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::BFloat16 && packed.is_contiguous() &&
                      packed.numel() == cpu::amx_packed_size(shape),
                  "amx: packed must come from amx_pack of a weight of this shape and dtype");
  STD_TORCH_CHECK(shift.scalar_type() == ScalarType::Float && shift.is_contiguous() && shift.numel() == shape.k,
                  "amx: shift must be contiguous float32 of ", shape.k, " values");
  if (residual) {
    check_activation(*residual, parts, "residual");
    for (const int axis : {0, 1, 2, 3}) {
      STD_TORCH_CHECK(residual->size(axis) == out.size(axis), "amx: residual must have the shape of out");
    }
  }
  if (out.numel() == 0) return;
  STD_TORCH_CHECK(x.const_data_ptr() != out.const_data_ptr(), "amx: out must not be x");
  const cpu::AmxPlan plan = cpu::amx_plan(shape, cpu::num_threads());
  const Tensor workspace = torch::stable::new_empty(
      out, {cpu::amx_workspace_size(plan) + kLine / static_cast<int64_t>(sizeof(uint16_t))}, ScalarType::BFloat16);
  const auto address = reinterpret_cast<uintptr_t>(workspace.mutable_data_ptr());
  cpu::amx_run(plan, x.const_data_ptr(), static_cast<const uint16_t*>(packed.const_data_ptr()),
               shift.const_data_ptr<float>(), residual ? residual->const_data_ptr() : nullptr, out.mutable_data_ptr(),
               relu, reinterpret_cast<uint16_t*>((address + kLine - 1) / kLine * kLine));
}

}  // namespace
}  // namespace resnet_fused

STABLE_TORCH_LIBRARY_FRAGMENT(resnet_fused_native, library) {
  library.def("amx_pack(Tensor weight) -> Tensor");
  library.def(
      "amx_conv(Tensor x, Tensor packed, Tensor shift, Tensor? residual, Tensor(a!) out, int kernel_h, int kernel_w, "
      "int stride, int padding, int dilation, bool relu) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(resnet_fused_native, CPU, library) {
  library.impl("amx_pack", TORCH_BOX(&resnet_fused::amx_pack));
  library.impl("amx_conv", TORCH_BOX(&resnet_fused::amx_conv));
}
