// Schemas and checks of the fused convolutions. They exist for `cuda::` alone. On a CPU torch's own convolution does
// the work, and one bn_relu pass follows.
#include "register/cuda/conv_op.h"

namespace resnet_fused {
namespace {

template <auto kLaunch, auto kScratch>
void conv_bn_relu(const Tensor& x, const Tensor& weight, const Tensor& mean, const Tensor& var,
                  const OptionalTensor& bn_weight, const OptionalTensor& bn_bias, const OptionalTensor& residual,
                  const Tensor& out, const Pair& stride, const Pair& padding, const Pair& dilation, int64_t groups,
                  double eps, int64_t activation, bool allow_tf32, const std::string& tile, int64_t splits,
                  bool cluster, bool early_weights) {
  const Arguments x_args("conv_bn_relu", "x", x), args("conv_bn_relu", "out", out);
  const Convolution conv = conv_of(x_args, x, weight, stride, padding, dilation, groups);
  check_output(x_args, args, out, conv.n, conv.k * conv.groups, conv.p, conv.q);
  const Epilogue epilogue = epilogue_of("conv_bn_relu", args, mean, var, bn_weight, bn_bias, eps, residual, activation);
  if (args.empty()) return;
  const Place place("conv_bn_relu", x);
  const ConvChoice choice{tile, splits, cluster, early_weights};
  const Scratch scratch(x, kScratch(args.dtype(), conv, allow_tf32, choice));
  kLaunch(args.dtype(), x.data_ptr(), weight.data_ptr(), epilogue, out.data_ptr(), conv, allow_tf32, choice,
          scratch.data(), place.stream());
}

template <auto kLaunch, auto kScratch>
void conv_bn_relu_pair(const Tensor& x, const Tensor& weight, const Tensor& mean, const Tensor& var,
                       const OptionalTensor& bn_weight, const OptionalTensor& bn_bias, const Tensor& out,
                       const Pair& stride, const Pair& padding, const Pair& dilation, double eps, const Tensor& weight2,
                       const Tensor& mean2, const Tensor& var2, const OptionalTensor& bn_weight2,
                       const OptionalTensor& bn_bias2, const Tensor& out2, const Pair& stride2, const Pair& padding2,
                       double eps2, bool allow_tf32, const std::string& tile, int64_t splits) {
  const Arguments x_args("conv_bn_relu_pair", "x", x);
  const Arguments args("conv_bn_relu_pair", "out", out), args2("conv_bn_relu_pair", "out2", out2);
  const Convolution conv = conv_of(x_args, x, weight, stride, padding, dilation, 1);
  const Convolution conv2 = conv_of(x_args, x, weight2, stride2, padding2, {1, 1}, 1);
  check_output(x_args, args, out, conv.n, conv.k, conv.p, conv.q);
  check_output(x_args, args2, out2, conv2.n, conv2.k, conv2.p, conv2.q);
  const Norm norm = norm_of(args, mean, var, bn_weight, bn_bias, eps);
  const Norm norm2 = norm_of(args2, mean2, var2, bn_weight2, bn_bias2, eps2);
  args.require(!args.empty() && !args2.empty(), "out has no values: shape ", Shape{out});
  const Place place("conv_bn_relu_pair", x);
  const ConvChoice choice{tile, splits};
  const Scratch scratch(x, kScratch(args.dtype(), conv, conv2, allow_tf32, choice));
  kLaunch(args.dtype(), x.data_ptr(), {weight.data_ptr(), {norm, nullptr, Activation::relu}, out.data_ptr(), conv},
          {weight2.data_ptr(), {norm2, nullptr, Activation::none}, out2.data_ptr(), conv2}, allow_tf32, choice,
          scratch.data(), place.stream());
}

template <auto kLaunch, auto kScratch>
void conv_stats(const Tensor& x, const Tensor& weight, const Tensor& out, const Tensor& mean, const Tensor& invstd,
                const OptionalTensor& running_mean, const OptionalTensor& running_var,
                const OptionalTensor& num_batches_tracked, const Pair& stride, const Pair& padding,
                const Pair& dilation, int64_t groups, double momentum, double eps, bool allow_tf32,
                const std::string& tile) {
  const Arguments x_args("conv_stats", "x", x), args("conv_stats", "out", out);
  const Convolution conv = conv_of(x_args, x, weight, stride, padding, dilation, groups);
  check_output(x_args, args, out, conv.n, conv.k * conv.groups, conv.p, conv.q);
  args.require(!args.empty(), "out has no values: shape ", Shape{out});
  float *to_mean = args.statistics("mean", mean), *to_invstd = args.statistics("invstd", invstd);
  const MutableChannels mean_buffer = args.mutable_channels("running_mean", running_mean);
  const MutableChannels var_buffer = args.mutable_channels("running_var", running_var);
  const int64_t* batches = args.counter("num_batches_tracked", num_batches_tracked);
  const Place place("conv_stats", x);
  const ConvChoice choice{tile, tile == "auto" ? 0 : 1};
  const Scratch scratch(x, kScratch(args.dtype(), conv, allow_tf32, choice));
  kLaunch(args.dtype(), x.data_ptr(), weight.data_ptr(), out.data_ptr(), conv, to_mean, to_invstd, mean_buffer,
          var_buffer, batches, momentum, eps, allow_tf32, choice, scratch.data(), place.stream());
}

// The choices worth measuring for a convolution, one per line: "<tile> <splits>". With clusters, lines "<tile> <splits>
// cluster" follow at the end.
template <auto kChoices>
std::string conv_choices(const Tensor& x, const Tensor& weight, const Pair& stride, const Pair& padding,
                         const Pair& dilation, int64_t groups, int64_t most_splits, bool allow_tf32, bool clusters) {
  const Arguments args("conv_choices", "x", x);
  const Convolution conv = conv_of(args, x, weight, stride, padding, dilation, groups);
  args.require(most_splits >= 1 && most_splits <= 1024, "most_splits must be 1 to 1024, but is ", most_splits);
  ConvChoice choices[64];
  const Place place("conv_choices", x);
  const int count = kChoices(args.dtype(), conv, allow_tf32, static_cast<int>(most_splits), clusters, choices, 64);
  std::ostringstream lines;
  for (int i = 0; i < count; ++i) {
    lines << choices[i].tile << ' ' << choices[i].splits << (choices[i].cluster ? " cluster\n" : "\n");
  }
  return lines.str();
}

template <auto kLaunch>
void conv_bn_relu_pool(const Tensor& x, const Tensor& weight, const Tensor& mean, const Tensor& var,
                       const OptionalTensor& bn_weight, const OptionalTensor& bn_bias, const Tensor& out,
                       const Pair& stride, const Pair& padding, double eps, bool allow_tf32) {
  const Arguments x_args("conv_bn_relu_pool", "x", x), args("conv_bn_relu_pool", "out", out);
  const Convolution conv = conv_of(x_args, x, weight, stride, padding, {1, 1}, 1);
  check_output(x_args, args, out, conv.n, conv.k * conv.groups, pooled_size(conv.p), pooled_size(conv.q));
  const Norm norm = norm_of(args, mean, var, bn_weight, bn_bias, eps);
  if (args.empty()) return;
  const Place place("conv_bn_relu_pool", x);
  kLaunch(args.dtype(), x.data_ptr(), weight.data_ptr(), norm, out.data_ptr(), conv, allow_tf32, place.stream());
}

}  // namespace

void run_conv_bn_relu(const Tensor& x, const Tensor& weight, const Tensor& mean, const Tensor& var,
                      const OptionalTensor& bn_weight, const OptionalTensor& bn_bias, const OptionalTensor& residual,
                      const Tensor& out, const Pair& stride, const Pair& padding, const Pair& dilation, int64_t groups,
                      double eps, Activation activation, bool allow_tf32) {
  conv_bn_relu<cuda::conv_bn_relu, cuda::conv_bn_relu_scratch>(
      x, weight, mean, var, bn_weight, bn_bias, residual, out, stride, padding, dilation, groups, eps,
      static_cast<int64_t>(activation), allow_tf32, "auto", 0, false, false);
}

void run_conv_bn_relu_pair(const Tensor& x, const Tensor& weight, const Tensor& mean, const Tensor& var,
                           const OptionalTensor& bn_weight, const OptionalTensor& bn_bias, const Tensor& out,
                           const Pair& stride, const Pair& padding, const Pair& dilation, double eps,
                           const Tensor& weight2, const Tensor& mean2, const Tensor& var2,
                           const OptionalTensor& bn_weight2, const OptionalTensor& bn_bias2, const Tensor& out2,
                           const Pair& stride2, const Pair& padding2, double eps2, bool allow_tf32) {
  conv_bn_relu_pair<cuda::conv_bn_relu_pair, cuda::conv_bn_relu_pair_scratch>(
      x, weight, mean, var, bn_weight, bn_bias, out, stride, padding, dilation, eps, weight2, mean2, var2, bn_weight2,
      bn_bias2, out2, stride2, padding2, eps2, allow_tf32, "auto", 0);
}

}  // namespace resnet_fused

// allow_tf32: the value of torch's cudnn flags at the time of the call, which the stable ABI cannot ask for. tile,
// splits, cluster, early_weights: how the work is divided (ConvChoice of ops.h).
STABLE_TORCH_LIBRARY_FRAGMENT(RESNET_FUSED_NAMESPACE, m) {
  m.def(
      "conv_bn_relu(Tensor x, Tensor weight, Tensor mean, Tensor var, Tensor? bn_weight, Tensor? bn_bias, "
      "Tensor? residual, Tensor(a!) out, int[2] stride, int[2] padding, int[2] dilation, int groups, float eps, "
      "int activation, bool allow_tf32=False, str tile='auto', int splits=0, bool cluster=False, "
      "bool early_weights=False) -> ()");
  // relu(bn(conv(x, weight))) and bn(conv(x, weight2)): the first convolution of a block and its projection.
  m.def(
      "conv_bn_relu_pair(Tensor x, Tensor weight, Tensor mean, Tensor var, Tensor? bn_weight, Tensor? bn_bias, "
      "Tensor(a!) out, int[2] stride, int[2] padding, int[2] dilation, float eps, Tensor weight2, Tensor mean2, "
      "Tensor var2, Tensor? bn_weight2, Tensor? bn_bias2, Tensor(b!) out2, int[2] stride2, int[2] padding2, "
      "float eps2, bool allow_tf32=False, str tile='auto', int splits=0) -> ()");
  m.def(
      "conv_stats(Tensor x, Tensor weight, Tensor(a!) out, Tensor(b!) mean, Tensor(c!) invstd, "
      "Tensor(d!)? running_mean, Tensor(e!)? running_var, Tensor? num_batches_tracked, int[2] stride, int[2] padding, "
      "int[2] dilation, int groups, float momentum, float eps, bool allow_tf32=False, str tile='auto') -> ()");
  m.def(
      "conv_choices(Tensor x, Tensor weight, int[2] stride, int[2] padding, int[2] dilation, int groups, "
      "int most_splits, bool allow_tf32=False, bool clusters=False) -> str");
  m.def(
      "conv_bn_relu_pool(Tensor x, Tensor weight, Tensor mean, Tensor var, Tensor? bn_weight, Tensor? bn_bias, "
      "Tensor(a!) out, int[2] stride, int[2] padding, float eps, bool allow_tf32=False) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(RESNET_FUSED_NAMESPACE, RESNET_FUSED_CUDA_KEY, m) {
  using namespace resnet_fused;
  m.impl("conv_bn_relu", TORCH_BOX((&conv_bn_relu<cuda::conv_bn_relu, cuda::conv_bn_relu_scratch>)));
  m.impl("conv_bn_relu_pair",
         TORCH_BOX((&conv_bn_relu_pair<cuda::conv_bn_relu_pair, cuda::conv_bn_relu_pair_scratch>)));
  m.impl("conv_stats", TORCH_BOX((&conv_stats<cuda::conv_stats, cuda::conv_stats_scratch>)));
  m.impl("conv_choices", TORCH_BOX((&conv_choices<cuda::conv_choices>)));
  m.impl("conv_bn_relu_pool", TORCH_BOX((&conv_bn_relu_pool<cuda::conv_bn_relu_pool>)));
}
