// Schemas and checks of the private launch ops. Python allocates every output. ops.h says what an op computes.
#include "register/register.h"

namespace resnet_fused {
namespace {

template <auto kLaunch>
void add_relu(const Tensor& x, const Tensor& residual, const Tensor& out) {
  const Arguments args("add_relu", "x", x);
  const void* with = args.like("residual", residual);
  void* to = args.like("out", out);
  if (args.empty()) return;
  const Place place("add_relu", x);
  kLaunch(args.dtype(), x.data_ptr(), with, to, args.size(), place.stream());
}

template <auto kLaunch>
void add_relu_backward(const Tensor& grad, const Tensor& out, const Tensor& grad_in) {
  const Arguments args("add_relu_backward", "grad", grad);
  const void* mask = args.like("out", out);
  void* to = args.like("grad_in", grad_in);
  if (args.empty()) return;
  const Place place("add_relu_backward", grad);
  kLaunch(args.dtype(), grad.data_ptr(), mask, to, args.size(), place.stream());
}

template <auto kLaunch, auto kScratch>
void bn_stats(const Tensor& x, const Tensor& mean, const Tensor& invstd, const OptionalTensor& running_mean,
              const OptionalTensor& running_var, const OptionalTensor& num_batches_tracked, double momentum,
              double eps) {
  const Arguments args("bn_stats", "x", x);
  const Layout layout = args.layout();
  args.require(!args.empty(), "x has no values: shape ", Shape{x});
  float *to_mean = args.statistics("mean", mean), *to_invstd = args.statistics("invstd", invstd);
  const MutableChannels mean_buffer = args.mutable_channels("running_mean", running_mean);
  const MutableChannels var_buffer = args.mutable_channels("running_var", running_var);
  const int64_t* batches = args.counter("num_batches_tracked", num_batches_tracked);
  const Place place("bn_stats", x);
  const Scratch scratch(x, kScratch(layout));
  kLaunch(layout, x.data_ptr(), to_mean, to_invstd, mean_buffer, var_buffer, batches, momentum, eps, scratch.data(),
          place.stream());
}

template <auto kLaunch>
void bn_stats_merge(const Tensor& parts, const Tensor& mean, const Tensor& invstd, const Tensor& var,
                    const Tensor& share, double count, double eps) {
  const Arguments like("bn_stats_merge", "parts", parts);
  like.require(like.dtype() == DType::f32 && parts.dim() == 2 && parts.is_contiguous() && parts.size(1) % 2 == 1,
               "parts must be float32 [world, 2 * channels + 1], but is ", Type{parts}, " ", Shape{parts});
  const int64_t channels = parts.size(1) / 2;
  const auto vector = [&](const char* name, const Tensor& tensor) {
    like.same_device(name, tensor);
    like.require(like.float_type(name, tensor) == DType::f32 && tensor.is_contiguous() && tensor.numel() == channels,
                 name, " must be float32 [", channels, "], but is ", Type{tensor}, " ", Shape{tensor});
    return static_cast<float*>(tensor.data_ptr());
  };
  float *to_mean = vector("mean", mean), *to_invstd = vector("invstd", invstd);
  float *to_var = vector("var", var), *to_share = vector("share", share);
  const Place place("bn_stats_merge", parts);
  kLaunch(parts.size(0), channels, static_cast<const float*>(parts.data_ptr()), count, eps, to_mean, to_invstd, to_var,
          to_share, place.stream());
}

// Without eps, mean and var_or_invstd are float32 batch statistics, and var_or_invstd is invstd. With eps, mean and
// var_or_invstd are buffers, and var_or_invstd is a variance.
Norm norm_of(const Arguments& args, const OptionalTensor& mean, const OptionalTensor& var_or_invstd,
             std::optional<double> eps, const OptionalTensor& weight, const OptionalTensor& bias) {
  if (!eps) {
    args.statistics("mean", mean);
    args.statistics("invstd", var_or_invstd);
  }
  return {args.channels("mean", mean),
          args.channels(eps ? "var" : "invstd", var_or_invstd),
          eps.has_value(),
          eps.value_or(0),
          args.channels("weight", weight),
          args.channels("bias", bias)};
}

template <auto kLaunch>
void bn_relu(const Tensor& x, const Tensor& mean, const Tensor& var_or_invstd, const OptionalTensor& weight,
             const OptionalTensor& bias, const OptionalTensor& residual, const Tensor& out, std::optional<double> eps,
             int64_t activation) {
  const Arguments args("bn_relu", "x", x);
  const Layout layout = args.layout();
  const Epilogue epilogue{norm_of(args, mean, var_or_invstd, eps, weight, bias), args.like("residual", residual),
                          activation_of("bn_relu", activation, {Activation::none, Activation::relu})};
  void* to = args.like("out", out);
  if (args.empty()) return;
  const Place place("bn_relu", x);
  kLaunch(layout, x.data_ptr(), epilogue, to, place.stream());
}

template <auto kLaunch>
void bn_add_bn_relu(const Tensor& x, const Tensor& mean, const Tensor& var_or_invstd, const OptionalTensor& weight,
                    const OptionalTensor& bias, std::optional<double> eps, const Tensor& z, const Tensor& mean_z,
                    const Tensor& var_or_invstd_z, const OptionalTensor& weight_z, const OptionalTensor& bias_z,
                    std::optional<double> eps_z, const Tensor& out) {
  const Arguments args("bn_add_bn_relu", "x", x);
  const Layout layout = args.layout();
  const Norm norm = norm_of(args, mean, var_or_invstd, eps, weight, bias);
  const Norm norm_z = norm_of(args, mean_z, var_or_invstd_z, eps_z, weight_z, bias_z);
  const void* with = args.like("z", z);
  void* to = args.like("out", out);
  if (args.empty()) return;
  const Place place("bn_add_bn_relu", x);
  kLaunch(layout, x.data_ptr(), norm, with, norm_z, to, place.stream());
}

// The activation of a backward op. The mask of ReLU is the stored output. An activation whose gradient needs its
// argument would need another tensor.
Activation masked_activation(const Arguments& args, const char* op, int64_t activation, const void* out) {
  const Activation which = activation_of(op, activation, {Activation::none, Activation::relu});
  args.require(which != Activation::relu || out, "relu needs out");
  return which;
}

template <auto kLaunch, auto kScratch>
void bn_relu_backward_reduce(const Tensor& grad, const OptionalTensor& x, const OptionalTensor& out,
                             const OptionalTensor& mean, const OptionalTensor& var_or_invstd, const Tensor& sum_g,
                             const OptionalTensor& sum_gx, std::optional<double> eps, int64_t activation,
                             const OptionalTensor& grad2, const OptionalTensor& masked) {
  const Arguments args("bn_relu_backward_reduce", "grad", grad);
  const Layout layout = args.layout();
  const void* more = args.like("grad2", grad2);
  void* to_masked = args.like("masked", masked);
  const void *values = args.like("x", x), *mask = args.like("out", out);
  const Norm norm = norm_of(args, mean, var_or_invstd, eps, std::nullopt, std::nullopt);
  float *to_g = args.statistics("sum_g", sum_g), *to_gx = args.statistics("sum_gx", sum_gx);
  const Activation which = masked_activation(args, "bn_relu_backward_reduce", activation, mask);
  args.require(!values || (mean && var_or_invstd && to_gx), "x comes without mean, var_or_invstd or sum_gx");
  args.require(!args.empty(), "grad has no values: shape ", Shape{grad});
  const Place place("bn_relu_backward_reduce", grad);
  const Scratch scratch(grad, kScratch(layout));
  kLaunch(layout, grad.data_ptr(), more, values, mask, norm, to_g, to_gx, to_masked, which, scratch.data(),
          place.stream());
}

template <auto kLaunch>
void bn_relu_backward_apply(const Tensor& grad, const OptionalTensor& x, const OptionalTensor& out,
                            const OptionalTensor& mean, const Tensor& var_or_invstd, const OptionalTensor& weight,
                            const OptionalTensor& sum_g, const OptionalTensor& sum_gx, const OptionalTensor& grad_x,
                            const OptionalTensor& grad_residual, std::optional<double> eps, int64_t activation,
                            const OptionalTensor& grad2) {
  const Arguments args("bn_relu_backward_apply", "grad", grad);
  const Layout layout = args.layout();
  const void* more = args.like("grad2", grad2);
  const void *values = args.like("x", x), *mask = args.like("out", out);
  const Norm norm = norm_of(args, mean, var_or_invstd, eps, weight, std::nullopt);
  const float *g = args.statistics("sum_g", sum_g), *gx = args.statistics("sum_gx", sum_gx);
  void *to_x = args.like("grad_x", grad_x), *to_residual = args.like("grad_residual", grad_residual);
  const Activation which = masked_activation(args, "bn_relu_backward_apply", activation, mask);
  args.require(eps || !to_x || (values && mean && g && gx),
               "grad_x with batch statistics needs x, mean, sum_g and sum_gx");
  if (args.empty()) return;
  const Place place("bn_relu_backward_apply", grad);
  kLaunch(layout, grad.data_ptr(), more, values, mask, norm, g, gx, to_x, to_residual, which, place.stream());
}

}  // namespace
}  // namespace resnet_fused

STABLE_TORCH_LIBRARY_FRAGMENT(RESNET_FUSED_NAMESPACE, m) {
  m.def("add_relu(Tensor x, Tensor residual, Tensor(a!) out) -> ()");
  m.def("add_relu_backward(Tensor grad, Tensor out, Tensor(a!) grad_in) -> ()");
  m.def(
      "bn_stats(Tensor x, Tensor(a!) mean, Tensor(b!) invstd, Tensor(c!)? running_mean, Tensor(d!)? running_var, "
      "Tensor? num_batches_tracked, float momentum, float eps) -> ()");
  m.def(
      "bn_stats_merge(Tensor parts, Tensor(a!) mean, Tensor(b!) invstd, Tensor(c!) var, Tensor(d!) share, float count, "
      "float eps) -> ()");
  m.def(
      "bn_relu(Tensor x, Tensor mean, Tensor var_or_invstd, Tensor? weight, Tensor? bias, Tensor? residual, Tensor(a!) "
      "out, "
      "float? eps, int activation) -> ()");
  m.def(
      "bn_add_bn_relu(Tensor x, Tensor mean, Tensor var_or_invstd, Tensor? weight, Tensor? bias, float? eps, Tensor z, "
      "Tensor mean_z, Tensor var_or_invstd_z, Tensor? weight_z, Tensor? bias_z, float? eps_z, Tensor(a!) out) -> ()");
  m.def(
      "bn_relu_backward_reduce(Tensor grad, Tensor? x, Tensor? out, Tensor? mean, Tensor? var_or_invstd, Tensor(a!) "
      "sum_g, "
      "Tensor(b!)? sum_gx, float? eps, int activation, Tensor? grad2=None, Tensor(c!)? masked=None) -> ()");
  m.def(
      "bn_relu_backward_apply(Tensor grad, Tensor? x, Tensor? out, Tensor? mean, Tensor var_or_invstd, Tensor? weight, "
      "Tensor? sum_g, Tensor? sum_gx, Tensor(a!)? grad_x, Tensor(b!)? grad_residual, float? eps, int activation, "
      "Tensor? grad2=None) -> ()");
}

#define RESNET_FUSED_IMPL(key, launchers)                                                                      \
  STABLE_TORCH_LIBRARY_IMPL(RESNET_FUSED_NAMESPACE, key, m) {                                                  \
    using namespace resnet_fused;                                                                              \
    m.impl("add_relu", TORCH_BOX((&add_relu<launchers::add_relu>)));                                           \
    m.impl("add_relu_backward", TORCH_BOX((&add_relu_backward<launchers::add_relu_backward>)));                \
    m.impl("bn_stats", TORCH_BOX((&bn_stats<launchers::bn_stats, launchers::bn_stats_scratch>)));              \
    m.impl("bn_stats_merge", TORCH_BOX((&bn_stats_merge<launchers::bn_stats_merge>)));                         \
    m.impl("bn_relu", TORCH_BOX((&bn_relu<launchers::bn_relu>)));                                              \
    m.impl("bn_add_bn_relu", TORCH_BOX((&bn_add_bn_relu<launchers::bn_add_bn_relu>)));                         \
    m.impl("bn_relu_backward_reduce",                                                                          \
           TORCH_BOX((&bn_relu_backward_reduce<launchers::bn_relu_backward_reduce,                             \
                                               launchers::bn_relu_backward_reduce_scratch>)));                 \
    m.impl("bn_relu_backward_apply", TORCH_BOX((&bn_relu_backward_apply<launchers::bn_relu_backward_apply>))); \
  }

#ifdef RESNET_FUSED_EMULATION
RESNET_FUSED_IMPL(RESNET_FUSED_CUDA_KEY, cuda)
#else
RESNET_FUSED_IMPL(CPU, cpu)
#ifdef RESNET_FUSED_WITH_CUDA
RESNET_FUSED_IMPL(CUDA, cuda)
#endif
#endif
