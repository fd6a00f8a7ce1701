// Schemas and checks of the private ops of csrc/cpu/winograd/winograd.h. Activations are dense channels_last and
// float32. A frozen convolution also takes bfloat16.
#include "cpu/winograd/winograd.h"

#include <cstdint>
#include <optional>

#include "cpu/base/parallel.h"
#include "register/check.h"
#include "register/cpu/winograd_op.h"

namespace resnet_fused {
namespace {

constexpr int64_t kAlignment = 16;  // floats: the workspace starts on a cache line

void check_m(int64_t m) { STD_TORCH_CHECK(m == 2 || m == 4, "winograd: m must be 2 or 4, not ", m); }

void check_float(const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == torch::headeronly::ScalarType::Float, "winograd: ", name, " must be float32");
}

void check_vector(const Tensor& tensor, int64_t size, const char* name) {
  check_float(tensor, name);
  STD_TORCH_CHECK(tensor.is_contiguous() && tensor.numel() == size, "winograd: ", name, " must be contiguous, of ",
                  size, " values");
}

// Every dtype except bfloat16 counts as float32 here. check_activation refuses the dtypes that the kernels do not take.
DType dtype_of(const Tensor& x) { return x.scalar_type() == ScalarType::BFloat16 ? DType::bf16 : DType::f32; }

void check_activation(const Tensor& tensor, DType dtype, const char* name) {
  const bool bf16 = dtype == DType::bf16;
  STD_TORCH_CHECK(tensor.scalar_type() == (bf16 ? ScalarType::BFloat16 : ScalarType::Float), "winograd: ", name,
                  bf16 ? " must be bfloat16" : " must be float32");
  STD_TORCH_CHECK(tensor.dim() == 4, "winograd: ", name, " must be [n, c, h, w]");
  STD_TORCH_CHECK(tensor.numel() == 0 || is_channels_last(tensor), "winograd: ", name,
                  " must be dense channels_last, but has strides ", Strides{tensor}, " for shape ", Shape{tensor});
}

cpu::WinogradShape shape_of(const Tensor& x, int64_t k, int64_t m, int64_t padding, DType dtype) {
  check_m(m);
  STD_TORCH_CHECK(padding == 0 || padding == 1, "winograd: padding must be 0 or 1, not ", padding);
  check_activation(x, dtype, "x");
  const cpu::WinogradShape shape{
      {x.size(0), x.size(2), x.size(3), x.size(1), k, 3, 3, 1, 1, 1, padding, padding}, static_cast<int>(m), dtype};
  STD_TORCH_CHECK(shape.c > 0 && k > 0 && shape.p > 0 && shape.q > 0, "winograd: no output pixel or channel");
  return shape;
}

Tensor winograd_pack(Tensor weight, std::optional<Tensor> scale, int64_t m, bool taps, bool bf16) {
  check_m(m);
  STD_TORCH_CHECK(!(taps && bf16), "winograd: taps are for float32");
  check_float(weight, "weight");
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(2) == 3 && weight.size(3) == 3 && weight.is_contiguous(),
                  "winograd: weight must be contiguous [k, c, 3, 3]");
  const int64_t k = weight.size(0), c = weight.size(1);
  if (scale) check_vector(*scale, k, "scale");
  const cpu::WinogradWeights kind = taps ? cpu::WinogradWeights::taps : cpu::WinogradWeights::points;
  cpu::WinogradShape shape{};
  shape.k = k, shape.c = c, shape.m = static_cast<int>(m), shape.dtype = bf16 ? DType::bf16 : DType::f32;
  Tensor packed = torch::stable::new_empty(weight, {cpu::winograd_packed_size(shape, kind)});
  cpu::winograd_pack(shape, kind, weight.const_data_ptr<float>(), scale ? scale->const_data_ptr<float>() : nullptr,
                     packed.mutable_data_ptr<float>());
  return packed;
}

// The kind of a packed weight, by its number of values.
cpu::WinogradWeights kind_of(const Tensor& packed, const cpu::WinogradShape& shape) {
  const bool taps =
      shape.dtype == DType::f32 && packed.numel() == cpu::winograd_packed_size(shape, cpu::WinogradWeights::taps);
  const auto kind = taps ? cpu::WinogradWeights::taps : cpu::WinogradWeights::points;
  check_vector(packed, cpu::winograd_packed_size(shape, kind), "packed");
  return kind;
}

int64_t winograd_workspace(Tensor x, Tensor packed, int64_t k, int64_t m, int64_t padding) {
  const cpu::WinogradShape shape = shape_of(x, k, m, padding, dtype_of(x));
  const cpu::WinogradPlan plan = cpu::winograd_plan(shape, kind_of(packed, shape), cpu::num_threads());
  return cpu::winograd_workspace_size(plan) + kAlignment;
}

float* aligned(const Tensor& workspace) {
  const auto address = reinterpret_cast<uintptr_t>(workspace.mutable_data_ptr<float>());
  constexpr uintptr_t kBytes = kAlignment * sizeof(float);
  return reinterpret_cast<float*>((address + kBytes - 1) / kBytes * kBytes);
}

// The output transform has the activations that are a least value, and no other activation.
Activation limit_of(const char* op, int64_t activation) {
  return activation_of(op, activation, {Activation::none, Activation::relu});
}

void check_output(const Tensor& x, const cpu::WinogradShape& shape, const std::optional<Tensor>& residual,
                  const Tensor& out) {
  check_activation(out, shape.dtype, "out");
  STD_TORCH_CHECK(out.size(0) == shape.n && out.size(2) == shape.p && out.size(3) == shape.q,
                  "winograd: out has the wrong shape");
  STD_TORCH_CHECK(x.numel() == 0 || x.const_data_ptr() != out.const_data_ptr(), "winograd: out must not be x");
  if (!residual) return;
  check_activation(*residual, shape.dtype, "residual");
  for (const int axis : {0, 1, 2, 3}) {
    STD_TORCH_CHECK(residual->size(axis) == out.size(axis), "winograd: residual must have the shape of out");
  }
}

void winograd_conv(Tensor x, Tensor packed, Tensor shift, std::optional<Tensor> residual, Tensor out, int64_t m,
                   int64_t padding, int64_t activation, std::optional<Tensor> workspace) {
  STD_TORCH_CHECK(out.dim() == 4, "winograd: out must be [n, k, h, w]");
  const cpu::WinogradShape shape = shape_of(x, out.size(1), m, padding, dtype_of(x));
  check_output(x, shape, residual, out);
  const cpu::WinogradWeights kind = kind_of(packed, shape);
  check_vector(shift, shape.k, "shift");
  const cpu::FoldedEpilogue epilogue{shift.const_data_ptr<float>(), residual ? residual->const_data_ptr() : nullptr,
                                     limit_of("winograd_conv", activation)};
  if (out.numel() == 0) return;
  const cpu::WinogradPlan plan = cpu::winograd_plan(shape, kind, cpu::num_threads());
  const int64_t needed = cpu::winograd_workspace_size(plan) + kAlignment;
  if (workspace) {
    check_float(*workspace, "workspace");
    STD_TORCH_CHECK(workspace->is_contiguous() && workspace->numel() >= needed, "winograd: workspace has fewer than ",
                    needed, " values; the number of threads may have changed");
  } else {
    workspace = torch::stable::new_empty(shift, {needed});
  }
  cpu::Loops loops;
  cpu::winograd_loops(plan, x.const_data_ptr(), packed.const_data_ptr<float>(), nullptr, epilogue,
                      out.mutable_data_ptr(), aligned(*workspace), nullptr, loops);
  cpu::run_loops(loops, plan.slots);
}

Channels vector(const std::optional<Tensor>& tensor, int64_t size, const char* name) {
  if (!tensor) return {nullptr, DType::f32};
  check_vector(*tensor, size, name);
  return {tensor->const_data_ptr<float>(), DType::f32};
}

}  // namespace

bool winograd_conv_bn_relu(Tensor x, Tensor weight, Tensor mean, Tensor var, std::optional<Tensor> bn_weight,
                           std::optional<Tensor> bn_bias, std::optional<Tensor> residual, Tensor out, int64_t padding,
                           double eps, int64_t activation) {
  check_float(weight, "weight");
  STD_TORCH_CHECK(weight.dim() == 4 && weight.size(1) == x.size(1) && weight.size(2) == 3 && weight.size(3) == 3 &&
                      weight.stride(2) == 3 * weight.stride(3),
                  "winograd: weight must be [k, c, 3, 3], dense, for the c channels of x");
  const cpu::WinogradShape shape = shape_of(x, weight.size(0), 2, padding, DType::f32);
  check_output(x, shape, residual, out);
  const Norm norm{vector(mean, shape.k, "mean"),           vector(var, shape.k, "var"),        true, eps,
                  vector(bn_weight, shape.k, "bn_weight"), vector(bn_bias, shape.k, "bn_bias")};
  const Epilogue epilogue{norm, residual ? residual->const_data_ptr() : nullptr,
                          limit_of("winograd_conv_bn_relu", activation)};
  if (out.numel() == 0) return true;
  const cpu::WinogradPlan plan = cpu::winograd_live_plan(shape, cpu::num_threads());
  Tensor workspace = torch::stable::new_empty(out, {cpu::winograd_live_workspace_size(plan) + kAlignment});
  return cpu::winograd_run_live(plan, x.const_data_ptr<float>(),
                                {weight.const_data_ptr<float>(), weight.stride(0), weight.stride(1), weight.stride(3)},
                                epilogue, out.mutable_data_ptr<float>(), aligned(workspace));
}

}  // namespace resnet_fused

STABLE_TORCH_LIBRARY_FRAGMENT(resnet_fused_native, library) {
  library.def("winograd_pack(Tensor weight, Tensor? scale, int m, bool taps, bool bf16=False) -> Tensor");
  library.def("winograd_workspace(Tensor x, Tensor packed, int k, int m, int padding) -> int");
  library.def(
      "winograd_conv(Tensor x, Tensor packed, Tensor shift, Tensor? residual, Tensor(a!) out, int m, int padding, "
      "int activation, Tensor(b!)? workspace) -> ()");
  // F(2x2, 3x3) of a live network. It returns false where a value was not finite: the direct sum may then differ, and
  // out must not be used.
  library.def(
      "winograd_conv_bn_relu(Tensor x, Tensor weight, Tensor mean, Tensor var, Tensor? bn_weight, Tensor? bn_bias, "
      "Tensor? residual, Tensor(a!) out, int padding, float eps, int activation) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(resnet_fused_native, CPU, library) {
  library.impl("winograd_pack", TORCH_BOX(&resnet_fused::winograd_pack));
  library.impl("winograd_workspace", TORCH_BOX(&resnet_fused::winograd_workspace));
  library.impl("winograd_conv", TORCH_BOX(&resnet_fused::winograd_conv));
  library.impl("winograd_conv_bn_relu", TORCH_BOX(&resnet_fused::winograd_conv_bn_relu));
}
