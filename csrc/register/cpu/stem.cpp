// Schemas and checks of the private ops of csrc/cpu/stem/stem.h.
#include "cpu/stem/stem.h"

#include <cstdint>
#include <optional>

#include "cpu/base/parallel.h"
#include "register/check.h"

namespace resnet_fused {
namespace {

void check_float(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == torch::headeronly::ScalarType::Float, "stem: ", name, " must be float32");
}

void check_vector(const Tensor& tensor, int64_t size, const char* name) {
  check_float(tensor, name);
  STD_TORCH_CHECK(tensor.is_contiguous() && tensor.numel() == size, "stem: ", name, " must be contiguous, of ", size,
                  " values");
}

Tensor stem_pack(Tensor weight, std::optional<Tensor> scale) {
  check_float(weight, "weight");
  STD_TORCH_CHECK(
      weight.dim() == 4 && weight.size(2) == weight.size(3) && weight.size(2) <= 16 && weight.is_contiguous(),
      "stem: weight must be contiguous [k, c, kernel, kernel], kernel at most 16");
  const int64_t k = weight.size(0), c = weight.size(1), kernel = weight.size(2);
  if (scale) check_vector(*scale, k, "scale");
  Tensor packed = torch::stable::new_empty(weight, {cpu::stem_packed_size(k, c, kernel)});
  cpu::stem_pack(weight.const_data_ptr<float>(), scale ? scale->const_data_ptr<float>() : nullptr, k, c, kernel,
                 packed.mutable_data_ptr<float>());
  return packed;
}

void stem_conv_pool(Tensor x, Tensor packed, Tensor shift, Tensor out, int64_t kernel, int64_t stride,
                    int64_t padding) {
  const bool x_bf16 = x.scalar_type() == ScalarType::BFloat16, bf16 = out.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK((x_bf16 && bf16) || x.scalar_type() == ScalarType::Float,
                  "stem: x must be float32, or bfloat16 like out");
  STD_TORCH_CHECK(bf16 || out.scalar_type() == ScalarType::Float, "stem: out must be float32 or bfloat16");
  STD_TORCH_CHECK(x.dim() == 4 && out.dim() == 4, "stem: x and out must be [n, c, h, w]");
  STD_TORCH_CHECK(kernel > 0 && kernel <= 16 && stride > 0 && padding >= 0 && padding < kernel,
                  "stem: kernel must be 1 to 16, stride positive, padding less than kernel");
  const cpu::StemShape shape =
      cpu::stem_shape(x.size(0), x.size(2), x.size(3), x.size(1), out.size(1), kernel, stride, padding);
  STD_TORCH_CHECK(shape.c > 0 && shape.k > 0 && shape.h + 2 * padding >= kernel && shape.w + 2 * padding >= kernel,
                  "stem: no output pixel or channel");
  STD_TORCH_CHECK(out.size(0) == shape.n && out.size(2) == shape.pooled_h() && out.size(3) == shape.pooled_w(),
                  "stem: out has the wrong shape");
  STD_TORCH_CHECK(out.numel() == 0 || is_channels_last(out), "stem: out must be dense channels_last, but has strides ",
                  Strides{out}, " for shape ", Shape{out});
  check_vector(packed, cpu::stem_packed_size(shape.k, shape.c, kernel), "packed");
  check_vector(shift, shape.k, "shift");
  if (out.numel() == 0) return;
  const int64_t strides[4] = {x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
  const int slots = cpu::num_threads();
  const Tensor workspace = torch::stable::new_empty(shift, {cpu::stem_workspace_size(shape, slots) + 16});
  const auto address = reinterpret_cast<uintptr_t>(workspace.mutable_data_ptr<float>());
  cpu::Loops loops;
  cpu::stem_loops(shape, x.const_data_ptr(), x_bf16, strides, packed.const_data_ptr<float>(),
                  shift.const_data_ptr<float>(), out.mutable_data_ptr(), bf16, slots,
                  reinterpret_cast<float*>((address + 63) / 64 * 64), loops);
  cpu::run_loops(loops, slots);
}

}  // namespace
}  // namespace resnet_fused

STABLE_TORCH_LIBRARY_FRAGMENT(resnet_fused_native, library) {
  library.def("stem_pack(Tensor weight, Tensor? scale) -> Tensor");
  library.def(
      "stem_conv_pool(Tensor x, Tensor packed, Tensor shift, Tensor(a!) out, int kernel, int stride, int padding) "
      "-> ()");
}

STABLE_TORCH_LIBRARY_IMPL(resnet_fused_native, CPU, library) {
  library.impl("stem_pack", TORCH_BOX(&resnet_fused::stem_pack));
  library.impl("stem_conv_pool", TORCH_BOX(&resnet_fused::stem_conv_pool));
}
