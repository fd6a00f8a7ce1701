// Schemas and checks of the private ops of csrc/cpu/stem/amx_stem.h.
#include "cpu/stem/amx_stem.h"

#include <cstdint>

#include "cpu/base/parallel.h"
#include "register/check.h"

namespace resnet_fused {
namespace {

constexpr int64_t kLine = 64;

Tensor amx_stem_pack(Tensor weight, bool bf16) {
  STD_TORCH_CHECK(weight.scalar_type() == ScalarType::Float && weight.dim() == 4 && weight.is_contiguous() &&
                      weight.size(2) == weight.size(3) && weight.size(2) <= cpu::kAmxStemWidth &&
                      weight.size(1) <= cpu::kAmxStemChannels && weight.numel() > 0,
                  "amx_stem: weight must be contiguous float32 [k, c, kernel, kernel], c at most 4, kernel at most 8");
  cpu::AmxStemShape shape{};
  shape.k = weight.size(0), shape.c = weight.size(1), shape.r = weight.size(2), shape.parts = bf16 ? 1 : 3;
  Tensor packed = torch::stable::new_empty(weight, {cpu::amx_stem_packed_size(shape)}, ScalarType::BFloat16);
  cpu::amx_stem_pack(shape, weight.const_data_ptr<float>(), static_cast<uint16_t*>(packed.mutable_data_ptr()));
  return packed;
}

void amx_stem(Tensor x, Tensor packed, Tensor shift, Tensor out, int64_t kernel, int64_t stride, int64_t padding) {
  STD_TORCH_CHECK(x.dim() == 4 && out.dim() == 4, "amx_stem: x and out must be [n, c, h, w]");
  const bool bf16 = out.scalar_type() == ScalarType::BFloat16, x_bf16 = x.scalar_type() == ScalarType::BFloat16;
  STD_TORCH_CHECK(bf16 || out.scalar_type() == ScalarType::Float, "amx_stem: out must be float32 or bfloat16");
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || (bf16 && x_bf16),
                  "amx_stem: x must be float32, or bfloat16 like out");
  STD_TORCH_CHECK(kernel > 0 && kernel <= cpu::kAmxStemWidth && stride > 0 && padding >= 0 && padding < kernel,
                  "amx_stem: kernel must be 1 to 8, stride positive, padding less than kernel");
  const cpu::AmxStemShape shape{
      cpu::stem_shape(x.size(0), x.size(2), x.size(3), x.size(1), out.size(1), kernel, stride, padding), bf16 ? 1 : 3};
  STD_TORCH_CHECK(shape.c > 0 && shape.c <= cpu::kAmxStemChannels && shape.k > 0 && shape.h + 2 * padding >= kernel &&
                      shape.w + 2 * padding >= kernel,
                  "amx_stem: no output pixel or channel, or more than 4 input channels");
  STD_TORCH_CHECK(out.size(0) == shape.n && out.size(2) == shape.pooled_h() && out.size(3) == shape.pooled_w(),
                  "amx_stem: out has the wrong shape");
  STD_TORCH_CHECK(out.numel() == 0 || is_channels_last(out),
                  "amx_stem: out must be dense channels_last, but has strides ", Strides{out}, " for shape ",
                  Shape{out});
  STD_TORCH_CHECK(packed.scalar_type() == ScalarType::BFloat16 && packed.is_contiguous() &&
                      packed.numel() == cpu::amx_stem_packed_size(shape),
                  "amx_stem: packed must come from amx_stem_pack of a weight of this shape and dtype");
  const int64_t channels = (shape.k + 31) / 32 * 32;
  STD_TORCH_CHECK(shift.scalar_type() == ScalarType::Float && shift.is_contiguous() && shift.numel() == channels,
                  "amx_stem: shift must be contiguous float32, padded to ", channels, " values");
  if (out.numel() == 0) return;
  const int64_t strides[4] = {x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
  const int slots = cpu::num_threads();
  const Tensor workspace = torch::stable::new_empty(
      out, {(cpu::amx_stem_workspace_size(shape, slots) + kLine) / static_cast<int64_t>(sizeof(float))},
      ScalarType::Float);
  const auto address = reinterpret_cast<uintptr_t>(workspace.mutable_data_ptr());
  cpu::Loops loops;
  cpu::amx_stem_loops(shape, x.const_data_ptr(), x_bf16, strides, static_cast<const uint16_t*>(packed.const_data_ptr()),
                      shift.const_data_ptr<float>(), out.mutable_data_ptr(), slots,
                      reinterpret_cast<void*>((address + kLine - 1) / kLine * kLine), loops);
  cpu::run_loops(loops, slots);
}

}  // namespace
}  // namespace resnet_fused

STABLE_TORCH_LIBRARY_FRAGMENT(resnet_fused_native, library) {
  library.def("amx_stem_pack(Tensor weight, bool bf16) -> Tensor");
  library.def(
      "amx_stem(Tensor x, Tensor packed, Tensor shift, Tensor(a!) out, int kernel, int stride, int padding) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(resnet_fused_native, CPU, library) {
  library.impl("amx_stem_pack", TORCH_BOX(&resnet_fused::amx_stem_pack));
  library.impl("amx_stem", TORCH_BOX(&resnet_fused::amx_stem));
}
