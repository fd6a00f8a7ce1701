// Schemas and checks of the private ops of csrc/cpu/direct/direct.h. Activations are dense channels_last.
#include "cpu/direct/direct.h"

#include <cstdint>
#include <optional>

#include "cpu/base/parallel.h"
#include "register/check.h"

namespace resnet_fused {
namespace {

constexpr int64_t kLine = 64;  // bytes: the workspace starts on a cache line

using Format = cpu::DirectFormat;

template <bool kMatrix>
Format format_of(const Tensor& tensor, const char* name) {
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16, "direct: ", name,
                  " must be float32 or bfloat16");
  const bool bf16 = type == ScalarType::BFloat16;
  return kMatrix ? (bf16 ? Format::amx_bf16 : Format::amx_f32) : bf16 ? Format::bf16 : Format::f32;
}

void check_activation(const Tensor& tensor, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == x.scalar_type(), "direct: ", name, " must have the dtype of x");
  STD_TORCH_CHECK(tensor.dim() == 4, "direct: ", name, " must be [n, c, h, w]");
  STD_TORCH_CHECK(tensor.numel() == 0 || is_channels_last(tensor), "direct: ", name,
                  " must be dense channels_last, but has strides ", Strides{tensor}, " for shape ", Shape{tensor});
}

template <bool kMatrix>
Tensor pack(Tensor weight) {
  cpu::DirectShape shape{};
  shape.format = format_of<kMatrix>(weight, "weight");
  STD_TORCH_CHECK(weight.dim() == 4 && weight.is_contiguous() && weight.numel() > 0,
                  "direct: weight must be contiguous [k, c, kernel_h, kernel_w]");
  shape.k = weight.size(0), shape.c = weight.size(1), shape.r = weight.size(2), shape.s = weight.size(3);
  Tensor packed = torch::stable::new_empty(weight, {cpu::direct_packed_size(shape)}, ScalarType::BFloat16);
  cpu::direct_pack(shape, weight.const_data_ptr(), static_cast<uint16_t*>(packed.mutable_data_ptr()));
  return packed;
}

template <bool kMatrix>
void conv(Tensor x, Tensor packed, Tensor shift, std::optional<Tensor> residual, Tensor out, int64_t kernel_h,
          int64_t kernel_w, int64_t stride, int64_t padding, int64_t dilation, int64_t activation) {
  const Format format = format_of<kMatrix>(x, "x");
  check_activation(x, x, "x");
  check_activation(out, x, "out");
  STD_TORCH_CHECK(kernel_h > 0 && kernel_w > 0 && stride > 0 && padding >= 0 && dilation > 0,
                  "direct: kernel, stride and dilation must be positive, padding not negative");
  const cpu::DirectShape shape{{x.size(0), x.size(2), x.size(3), x.size(1), out.size(1), kernel_h, kernel_w, 1, stride,
                                stride, padding, padding, dilation, dilation},
                               format};
  STD_TORCH_CHECK(shape.c > 0 && shape.k > 0 && shape.h + 2 * padding > (kernel_h - 1) * dilation &&
                      shape.w + 2 * padding > (kernel_w - 1) * dilation,
                  "direct: no output pixel or channel");
  STD_TORCH_CHECK(out.size(0) == shape.n && out.size(2) == shape.p && out.size(3) == shape.q,
                  "direct: out has the wrong shape");
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::BFloat16 && packed.is_contiguous() &&
                      packed.numel() == cpu::direct_packed_size(shape),
                  "direct: packed must come from ", kMatrix ? "amx_pack" : "direct_pack",
                  " of a weight of this shape and dtype");
  STD_TORCH_CHECK(shift.scalar_type() == ScalarType::Float && shift.is_contiguous() && shift.numel() == shape.k,
                  "direct: shift must be contiguous float32 of ", shape.k, " values");
  if (residual) {
    check_activation(*residual, x, "residual");
    for (const int axis : {0, 1, 2, 3}) {
      STD_TORCH_CHECK(residual->size(axis) == out.size(axis), "direct: residual must have the shape of out");
    }
  }
  const cpu::FoldedEpilogue epilogue{
      shift.const_data_ptr<float>(), residual ? residual->const_data_ptr() : nullptr,
      activation_of(kMatrix ? "amx_conv" : "direct_conv", activation, {Activation::none, Activation::relu})};
  if (out.numel() == 0) return;
  STD_TORCH_CHECK(x.const_data_ptr() != out.const_data_ptr(), "direct: out must not be x");
  const cpu::DirectPlan plan = cpu::direct_plan(shape, cpu::num_threads());
  const Tensor workspace = torch::stable::new_empty(
      out, {cpu::direct_workspace_size(plan) + kLine / static_cast<int64_t>(sizeof(uint16_t))}, ScalarType::BFloat16);
  const auto address = reinterpret_cast<uintptr_t>(workspace.mutable_data_ptr());
  cpu::Loops loops;
  cpu::direct_loops(plan, x.const_data_ptr(), static_cast<const uint16_t*>(packed.const_data_ptr()), epilogue,
                    out.mutable_data_ptr(), reinterpret_cast<uint16_t*>((address + kLine - 1) / kLine * kLine), loops);
  cpu::run_loops(loops, plan.slots);
}

}  // namespace
}  // namespace resnet_fused

STABLE_TORCH_LIBRARY_FRAGMENT(resnet_fused_native, library) {
  library.def("direct_pack(Tensor weight) -> Tensor");
  library.def("amx_pack(Tensor weight) -> Tensor");
  library.def(
      "direct_conv(Tensor x, Tensor packed, Tensor shift, Tensor? residual, Tensor(a!) out, int kernel_h, int "
      "kernel_w, "
      "int stride, int padding, int dilation, int activation) -> ()");
  library.def(
      "amx_conv(Tensor x, Tensor packed, Tensor shift, Tensor? residual, Tensor(a!) out, int kernel_h, int kernel_w, "
      "int stride, int padding, int dilation, int activation) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(resnet_fused_native, CPU, library) {
  library.impl("direct_pack", TORCH_BOX(&resnet_fused::pack<false>));
  library.impl("direct_conv", TORCH_BOX(&resnet_fused::conv<false>));
  library.impl("amx_pack", TORCH_BOX(&resnet_fused::pack<true>));
  library.impl("amx_conv", TORCH_BOX(&resnet_fused::conv<true>));
}
