// Schemas and checks of the convolutions of training by Winograd: csrc/cpu/winograd/winograd.h and weight_gradient.h.
// Activations are dense channels_last, and everything is float32. The ops return false where a value was not finite:
// the direct sum may then differ, and the result must not be used.
#include <cstdint>

#include "cpu/base/parallel.h"
#include "cpu/winograd/weight_gradient.h"
#include "cpu/winograd/winograd.h"
#include "register/check.h"

namespace resnet_fused {
namespace {

constexpr int64_t kAlignment = 16;  // floats: the workspace starts on a cache line

void check_float(const char* op, const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == ScalarType::Float, op, ": ", name, " must be float32");
}

void check_map(const char* op, const Tensor& tensor, const char* name) {
  check_float(op, tensor, name);
  STD_TORCH_CHECK(tensor.dim() == 4 && (tensor.numel() == 0 || is_channels_last(tensor)), op, ": ", name,
                  " must be dense channels_last, but has strides ", Strides{tensor}, " for shape ", Shape{tensor});
}

void check_weight(const char* op, const Tensor& tensor, const char* name, int64_t k, int64_t c) {
  check_float(op, tensor, name);
  STD_TORCH_CHECK(tensor.dim() == 4 && tensor.size(0) == k && tensor.size(1) == c && tensor.size(2) == 3 &&
                      tensor.size(3) == 3 && tensor.stride(2) == 3 * tensor.stride(3),
                  op, ": ", name, " must be [", k, ", ", c, ", 3, 3] with rows of taps one after another, not ",
                  Shape{tensor});
}

// The convolution of `x` to `out`, both [n, channels, h, w].
Convolution shape_of(const char* op, const Tensor& x, const Tensor& out, int64_t padding) {
  const Convolution shape{x.size(0), x.size(2), x.size(3), x.size(1), out.size(1), 3, 3, 1, 1, 1, padding, padding};
  STD_TORCH_CHECK(shape.c > 0 && shape.k > 0 && shape.p > 0 && shape.q > 0, op, ": no output pixel or channel");
  STD_TORCH_CHECK(out.size(0) == shape.n && out.size(2) == shape.p && out.size(3) == shape.q, op, ": ", Shape{x},
                  " with padding ", padding, " does not give ", Shape{out});
  return shape;
}

struct Workspace {
  Workspace(const Tensor& like, int64_t floats) : memory(torch::stable::new_empty(like, {floats + kAlignment})) {}
  float* data() const {
    const auto address = reinterpret_cast<uintptr_t>(memory.mutable_data_ptr<float>());
    constexpr uintptr_t kBytes = kAlignment * sizeof(float);
    return reinterpret_cast<float*>((address + kBytes - 1) / kBytes * kBytes);
  }
  Tensor memory;
};

bool convolve(const char* op, const Tensor& x, const cpu::WinogradFilters& filters, const Tensor& out,
              int64_t padding) {
  const cpu::WinogradShape shape{shape_of(op, x, out, padding), 2, DType::f32};
  STD_TORCH_CHECK(x.numel() == 0 || x.const_data_ptr() != out.const_data_ptr(), op, ": out must not be x");
  if (out.numel() == 0) return true;
  const cpu::WinogradPlan plan = cpu::winograd_live_plan(shape, cpu::num_threads());
  const Workspace workspace(out, cpu::winograd_live_workspace_size(plan));
  return cpu::winograd_convolve(plan, x.const_data_ptr<float>(), filters, out.mutable_data_ptr<float>(),
                                workspace.data());
}

void check_padding(const char* op, int64_t padding) {
  STD_TORCH_CHECK(padding == 0 || padding == 1, op, ": padding must be 0 or 1, not ", padding);
}

bool winograd_forward(Tensor x, Tensor weight, Tensor out, int64_t padding) {
  constexpr const char* kOp = "winograd_forward";
  check_padding(kOp, padding);
  check_map(kOp, x, "x");
  check_map(kOp, out, "out");
  check_weight(kOp, weight, "weight", out.size(1), x.size(1));
  return convolve(kOp, x, {weight.const_data_ptr<float>(), weight.stride(0), weight.stride(1), weight.stride(3)}, out,
                  padding);
}

bool winograd_input_gradient(Tensor grad, Tensor weight, Tensor out, int64_t padding) {
  constexpr const char* kOp = "winograd_input_gradient";
  check_padding(kOp, padding);
  check_map(kOp, grad, "grad");
  check_map(kOp, out, "out");
  check_weight(kOp, weight, "weight", grad.size(1), out.size(1));
  const int64_t tap = weight.stride(3);
  return convolve(kOp, grad, {weight.const_data_ptr<float>() + 8 * tap, weight.stride(1), weight.stride(0), -tap}, out,
                  2 - padding);
}

bool winograd_weight_gradient(Tensor grad, Tensor x, Tensor out, int64_t padding) {
  constexpr const char* kOp = "winograd_weight_gradient";
  check_padding(kOp, padding);
  check_map(kOp, grad, "grad");
  check_map(kOp, x, "x");
  check_weight(kOp, out, "out", grad.size(1), x.size(1));
  const Convolution shape = shape_of(kOp, x, grad, padding);
  STD_TORCH_CHECK(shape.n > 0, kOp, ": a batch of none");
  const cpu::WeightGradientPlan plan = cpu::winograd_weight_gradient_plan(shape, cpu::num_threads());
  const Workspace workspace(out, cpu::winograd_weight_gradient_workspace_size(plan));
  return cpu::winograd_weight_gradient(plan, grad.const_data_ptr<float>(), x.const_data_ptr<float>(),
                                       {out.mutable_data_ptr<float>(), out.stride(0), out.stride(1), out.stride(3)},
                                       workspace.data());
}

}  // namespace
}  // namespace resnet_fused

STABLE_TORCH_LIBRARY_FRAGMENT(resnet_fused_native, library) {
  library.def("winograd_forward(Tensor x, Tensor weight, Tensor(a!) out, int padding) -> bool");
  library.def("winograd_input_gradient(Tensor grad, Tensor weight, Tensor(a!) out, int padding) -> bool");
  library.def("winograd_weight_gradient(Tensor grad, Tensor x, Tensor(a!) out, int padding) -> bool");
}

STABLE_TORCH_LIBRARY_IMPL(resnet_fused_native, CPU, library) {
  library.impl("winograd_forward", TORCH_BOX(&resnet_fused::winograd_forward));
  library.impl("winograd_input_gradient", TORCH_BOX(&resnet_fused::winograd_input_gradient));
  library.impl("winograd_weight_gradient", TORCH_BOX(&resnet_fused::winograd_weight_gradient));
}
