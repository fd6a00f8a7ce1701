// Host side of conv_bn_relu: plan, arguments, and batches too large for 32-bit pixel numbers in several launches.
#include "conv_args.cuh"
#include "conv_tile.cuh"

namespace resnet_fused::cuda {

template <class Math>
void launch_conv(const ConvPlan& plan, const ConvArgs& args, void* stream);  // conv_bn_relu_<math>.cu

namespace {

bool aligned16(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }
const void* skip(const void* p, int64_t bytes) { return p ? static_cast<const char*>(p) + bytes : nullptr; }

}  // namespace

size_t conv_bn_relu_scratch(DType dtype, Conv conv, bool allow_tf32) {
  // The pointers are not known yet: room for either plan.
  const size_t aligned = conv_plan(dtype, conv, allow_tf32, true).scratch;
  const size_t unaligned = conv_plan(dtype, conv, allow_tf32, false).scratch;
  return aligned > unaligned ? aligned : unaligned;
}

void conv_bn_relu_planned(const ConvPlan& plan, DType dtype, const void* x, const void* weight, Norm norm,
                          const void* residual, void* out, Conv conv, bool relu, bool allow_tf32, void* scratch,
                          void* stream) {
  const bool aligned = aligned16(x) && aligned16(weight) && aligned16(residual) && aligned16(out);
  const int64_t element = dtype == DType::f32 ? 4 : 2;
  const int64_t x_image = conv.h * conv.w * conv.c * conv.groups * element;
  const int64_t out_image = conv.p * conv.q * conv.k * conv.groups * element;
  for (int64_t first = 0; first < conv.n; first += plan.images) {
    const int64_t images = conv.n - first < plan.images ? conv.n - first : plan.images;
    void* to = static_cast<char*>(out) + first * out_image;
    const ConvArgs args = conv_args(plan, dtype, skip(x, first * x_image), weight, norm,
                                    skip(residual, first * out_image), to, conv, images, relu, aligned, scratch);
    switch (conv_math(dtype, allow_tf32)) {
      case ConvMath::f16: launch_conv<MathF16>(plan, args, stream); break;
      case ConvMath::bf16: launch_conv<MathBF16>(plan, args, stream); break;
      case ConvMath::tf32: launch_conv<MathTF32>(plan, args, stream); break;
      case ConvMath::f32: launch_conv<MathF32>(plan, args, stream); break;
    }
  }
}

void conv_bn_relu(DType dtype, const void* x, const void* weight, Norm norm, const void* residual, void* out, Conv conv,
                  bool relu, bool allow_tf32, void* scratch, void* stream) {
  const bool aligned = aligned16(x) && aligned16(weight) && aligned16(residual) && aligned16(out);
  const ConvPlan plan = conv_plan(dtype, conv, allow_tf32, aligned);
  conv_bn_relu_planned(plan, dtype, x, weight, norm, residual, out, conv, relu, allow_tf32, scratch, stream);
}

}  // namespace resnet_fused::cuda
