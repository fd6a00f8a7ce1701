// Schemas and checks of the plane convolution (hopper/plane/op.h). conv_plane_table makes its list of products once per
// shape. The caller keeps the list in device memory, because a captured graph goes on reading it.
#include "cuda/hopper/plane/op.h"
#include "register/cuda/conv.h"

namespace resnet_fused {
namespace {

cuda::PlaneTable table_of(const Arguments& args, const Tensor& table, const Convolution& conv, bool gradient,
                          int64_t places) {
  args.require(places == 2 || places == 4, "places must be 2 or 4, but is ", places);
  args.same_device("table", table);
  args.require(table.scalar_type() == ScalarType::Int && table.is_contiguous(), "table has dtype ", Type{table},
               " and strides ", Strides{table}, ", but must be a dense Int");
  const int64_t least = 8 * cuda::conv_plane_groups(conv, gradient, static_cast<int>(places));
  args.require(table.numel() >= least, "table has ", table.numel(), " values, but the headers of this convolution are ",
               least, ": the table belongs to another convolution");
  return {static_cast<const int*>(table.data_ptr()), static_cast<int>(places)};
}

void require_runs(const Arguments& args, const Convolution& conv, bool gradient, int64_t cluster) {
  const std::string why = cuda::conv_plane_refusal(args.dtype(), conv, gradient);
  args.require(why.empty(), why);
  args.require(cluster == 1 || cluster == 2, "cluster must be 1 or 2, but is ", cluster);
  args.require(cluster == 1 || conv.n > 64, "cluster must be 1 for at most 64 images, but is ", cluster, " for ",
               conv.n);
}

void conv_plane(const Tensor& x, const Tensor& weight, const Tensor& mean, const Tensor& var,
                const OptionalTensor& bn_weight, const OptionalTensor& bn_bias, const OptionalTensor& residual,
                const Tensor& out, const Tensor& table, const Pair& stride, const Pair& padding, const Pair& dilation,
                int64_t groups, double eps, int64_t activation, int64_t places, int64_t cluster) {
  const Arguments x_args("conv_plane", "x", x), args("conv_plane", "out", out);
  const Convolution conv = conv_of(x_args, x, weight, stride, padding, dilation, groups);
  check_output(x_args, args, out, conv.n, conv.k * groups, conv.p, conv.q);
  const Epilogue epilogue = epilogue_of("conv_plane", args, mean, var, bn_weight, bn_bias, eps, residual, activation);
  const Place place("conv_plane", x);
  require_runs(args, conv, false, cluster);
  const cuda::PlaneTable list = table_of(args, table, conv, false, places);
  for (const auto& [name, data] : {std::pair<const char*, const void*>{"x", x.data_ptr()},
                                   {"weight", weight.data_ptr()},
                                   {"residual", epilogue.residual},
                                   {"out", out.data_ptr()},
                                   {"table", list.data}}) {
    require_aligned(args, name, data);
  }
  if (args.empty()) return;
  cuda::conv_plane(args.dtype(), x.data_ptr(), weight.data_ptr(), epilogue, out.data_ptr(), conv, false, list,
                   static_cast<int>(cluster), place.stream());
}

// out = the gradient of a convolution's input, computed from the gradient of its output. turned: the convolution's
// weight [k, c, r, s] as a channels_last tensor [c, k, r, s].
void conv_plane_gradient(const Tensor& grad, const Tensor& turned, const Tensor& out, const Tensor& table,
                         const Pair& stride, const Pair& padding, const Pair& dilation, int64_t places,
                         int64_t cluster) {
  const Arguments grad_args("conv_plane_gradient", "grad", grad), args("conv_plane_gradient", "out", out);
  args.require(turned.dim() == 4 && is_channels_last(turned), "turned has shape ", Shape{turned}, " and strides ",
               Strides{turned}, ", but must have 4 dimensions and be channels_last");
  args.same_device("turned", turned);
  args.require(args.float_type("turned", turned) == args.dtype(), "turned has another dtype than out");
  args.require(out.dim() == 4 && is_channels_last(out), "out has strides ", Strides{out}, " for shape ", Shape{out},
               ", but must be channels_last");
  args.require(out.size(1) == turned.size(0), "turned has shape ", Shape{turned}, ", but out has ", out.size(1),
               " channels");
  const Convolution conv = numbers_of(args, out, turned.size(1), turned.size(0), turned.size(2), turned.size(3), stride,
                                      padding, dilation, 1);
  check_output(args, grad_args, grad, conv.n, conv.k, conv.p, conv.q);
  const Place place("conv_plane_gradient", grad);
  require_runs(args, conv, true, cluster);
  const cuda::PlaneTable list = table_of(args, table, conv, true, places);
  for (const auto& [name, data] : {std::pair<const char*, const void*>{"grad", grad.data_ptr()},
                                   {"turned", turned.data_ptr()},
                                   {"out", out.data_ptr()},
                                   {"table", list.data}}) {
    require_aligned(args, name, data);
  }
  if (args.empty()) return;
  cuda::conv_plane(args.dtype(), grad.data_ptr(), turned.data_ptr(), {}, out.data_ptr(), conv, true, list,
                   static_cast<int>(cluster), place.stream());
}

// Fills `out` [>= size] on the CPU with the list of a convolution of images of `size`, and returns the number of
// integers of the list. Where `out` is shorter, only the number is returned.
int64_t conv_plane_table(const Tensor& out, const Pair& size, const Pair& kernel, const Pair& stride,
                         const Pair& padding, const Pair& dilation, bool gradient, int64_t places) {
  const auto require = [](bool good, const char* what) {
    if (!good) throw std::runtime_error(std::string("conv_plane_table: ") + what);
  };
  require(out.scalar_type() == ScalarType::Int && out.is_contiguous() && !out.is_cuda(),
          "out must be a dense Int on the CPU");
  require(places == 2 || places == 4, "places must be 2 or 4");
  const Convolution conv{1, size[0],   size[1],   1,          1,          kernel[0],   kernel[1],
                         1, stride[0], stride[1], padding[0], padding[1], dilation[0], dilation[1]};
  require(conv.p > 0 && conv.q > 0, "the kernel does not fit into the image");
  const std::vector<int> table = cuda::conv_plane_table(conv, gradient, static_cast<int>(places));
  const int64_t count = static_cast<int64_t>(table.size());
  if (out.numel() >= count) std::copy(table.begin(), table.end(), static_cast<int*>(out.data_ptr()));
  return count;
}

// Why conv_plane cannot run these tensors on their device, or "".
std::string conv_plane_refusal(const Tensor& x, const Tensor& weight, const Pair& stride, const Pair& padding,
                               const Pair& dilation, int64_t groups) {
  const Arguments args("conv_plane_refusal", "x", x);
  const Convolution conv = conv_of(args, x, weight, stride, padding, dilation, groups);
  const Place place("conv_plane_refusal", x);
  return cuda::conv_plane_refusal(args.dtype(), conv, false);
}

}  // namespace
}  // namespace resnet_fused

STABLE_TORCH_LIBRARY_FRAGMENT(RESNET_FUSED_NAMESPACE, m) {
  m.def(
      "conv_plane(Tensor x, Tensor weight, Tensor mean, Tensor var, Tensor? bn_weight, Tensor? bn_bias, "
      "Tensor? residual, Tensor(a!) out, Tensor table, int[2] stride, int[2] padding, int[2] dilation, int groups, "
      "float eps, int activation, int places=4, int cluster=1) -> ()");
  m.def(
      "conv_plane_gradient(Tensor grad, Tensor turned, Tensor(a!) out, Tensor table, int[2] stride, int[2] padding, "
      "int[2] dilation, int places=4, int cluster=1) -> ()");
  m.def(
      "conv_plane_table(Tensor(a!) out, int[2] size, int[2] kernel, int[2] stride, int[2] padding, int[2] dilation, "
      "bool gradient, int places) -> int");
  m.def(
      "conv_plane_refusal(Tensor x, Tensor weight, int[2] stride, int[2] padding, int[2] dilation, int groups) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(RESNET_FUSED_NAMESPACE, RESNET_FUSED_CUDA_KEY, m) {
  using namespace resnet_fused;
  m.impl("conv_plane", TORCH_BOX(&conv_plane));
  m.impl("conv_plane_gradient", TORCH_BOX(&conv_plane_gradient));
  m.impl("conv_plane_refusal", TORCH_BOX(&conv_plane_refusal));
}

STABLE_TORCH_LIBRARY_IMPL(RESNET_FUSED_NAMESPACE, CPU, m) {
  m.impl("conv_plane_table", TORCH_BOX(&resnet_fused::conv_plane_table));
}
