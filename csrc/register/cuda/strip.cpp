// Schemas and checks of the strip convolution (hopper/strip/op.h).
#include "cuda/hopper/strip/op.h"
#include "register/cuda/conv.h"

namespace resnet_fused {
namespace {

void require_runs(const Arguments& args, const Convolution& conv) {
  const std::string why = cuda::conv_strip_refusal(args.dtype(), conv);
  args.require(why.empty(), why);
}

void conv_strip(const Tensor& x, const Tensor& weight, const Tensor& mean, const Tensor& var,
                const OptionalTensor& bn_weight, const OptionalTensor& bn_bias, const OptionalTensor& residual,
                const Tensor& out, const Pair& stride, const Pair& padding, const Pair& dilation, int64_t groups,
                double eps, int64_t activation) {
  const Arguments x_args("conv_strip", "x", x), args("conv_strip", "out", out);
  const Convolution conv = conv_of(x_args, x, weight, stride, padding, dilation, groups);
  check_output(x_args, args, out, conv.n, conv.k * groups, conv.p, conv.q);
  const Epilogue epilogue = epilogue_of("conv_strip", args, mean, var, bn_weight, bn_bias, eps, residual, activation);
  const Place place("conv_strip", x);
  require_runs(args, conv);
  for (const auto& [name, data] : {std::pair<const char*, const void*>{"x", x.data_ptr()},
                                   {"weight", weight.data_ptr()},
                                   {"residual", epilogue.residual},
                                   {"out", out.data_ptr()}}) {
    require_aligned(args, name, data);
  }
  if (args.empty()) return;
  cuda::conv_strip(args.dtype(), x.data_ptr(), weight.data_ptr(), epilogue, out.data_ptr(), conv, false,
                   place.stream());
}

// out = the gradient of a convolution's input, computed from the gradient of its output. turned: the convolution's
// weight [k, c, r, s] as a channels_last tensor [c, k, r, s].
void conv_strip_gradient(const Tensor& grad, const Tensor& turned, const Tensor& out) {
  const Arguments grad_args("conv_strip_gradient", "grad", grad), args("conv_strip_gradient", "out", out);
  // The gradient is a convolution with the same numbers.
  const Convolution conv = conv_of(grad_args, grad, turned, {1, 1}, {1, 1}, {1, 1}, 1);
  check_output(grad_args, args, out, conv.n, conv.k, conv.p, conv.q);
  const Place place("conv_strip_gradient", grad);
  require_runs(args, conv);
  for (const auto& [name, data] : {std::pair<const char*, const void*>{"grad", grad.data_ptr()},
                                   {"turned", turned.data_ptr()},
                                   {"out", out.data_ptr()}}) {
    require_aligned(args, name, data);
  }
  if (args.empty()) return;
  cuda::conv_strip(args.dtype(), grad.data_ptr(), turned.data_ptr(), {}, out.data_ptr(), conv, true, place.stream());
}

// Why conv_strip cannot run these tensors on their device, or "".
std::string conv_strip_refusal(const Tensor& x, const Tensor& weight, const Pair& stride, const Pair& padding,
                               const Pair& dilation, int64_t groups) {
  const Arguments args("conv_strip_refusal", "x", x);
  const Convolution conv = conv_of(args, x, weight, stride, padding, dilation, groups);
  const Place place("conv_strip_refusal", x);
  return cuda::conv_strip_refusal(args.dtype(), conv);
}

}  // namespace
}  // namespace resnet_fused

STABLE_TORCH_LIBRARY_FRAGMENT(RESNET_FUSED_NAMESPACE, m) {
  m.def(
      "conv_strip(Tensor x, Tensor weight, Tensor mean, Tensor var, Tensor? bn_weight, Tensor? bn_bias, "
      "Tensor? residual, Tensor(a!) out, int[2] stride, int[2] padding, int[2] dilation, int groups, float eps, "
      "int activation) -> ()");
  m.def("conv_strip_gradient(Tensor grad, Tensor turned, Tensor(a!) out) -> ()");
  m.def(
      "conv_strip_refusal(Tensor x, Tensor weight, int[2] stride, int[2] padding, int[2] dilation, int groups) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(RESNET_FUSED_NAMESPACE, RESNET_FUSED_CUDA_KEY, m) {
  using namespace resnet_fused;
  m.impl("conv_strip", TORCH_BOX(&conv_strip));
  m.impl("conv_strip_gradient", TORCH_BOX(&conv_strip_gradient));
  m.impl("conv_strip_refusal", TORCH_BOX(&conv_strip_refusal));
}
