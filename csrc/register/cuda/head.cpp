// Schema and checks of the fused head. It exists for `cuda::` alone: on a CPU the head takes almost no time.
#include "register/register.h"

namespace resnet_fused {
namespace {

template <auto kLaunch>
void pool_linear(const Tensor& x, const Tensor& weight, const OptionalTensor& bias, const Tensor& out) {
  const Arguments args("pool_linear", "x", x);
  args.require(x.dim() == 4 && weight.dim() == 2, "x has shape ", Shape{x}, " and weight ", Shape{weight},
               ", but they must have 4 and 2 dimensions");
  args.require(args.empty() || is_channels_last(x), "x has strides ", Strides{x}, " for shape ", Shape{x},
               ", but must be channels_last");
  const int64_t n = x.size(0), c = x.size(1), pixels = x.size(2) * x.size(3), k = weight.size(0);
  args.require(weight.size(1) == c, "weight has shape ", Shape{weight}, ", but x has ", c, " channels");
  args.require(out.dim() == 2 && out.size(0) == n && out.size(1) == k, "out has shape ", Shape{out},
               ", but the result is [", n, ", ", k, "]");
  args.require(!bias || (bias->dim() == 1 && bias->size(0) == k), "bias must have shape [", k, "]");
  constexpr int64_t kMost = 1 << 24;  // fits an int, with room for sums
  args.require(c < kMost && k < kMost, "weight has shape ", Shape{weight}, ", but at most 2^24 of each are taken");
  for (const auto& [name, tensor] :
       {std::pair<const char*, const Tensor*>{"weight", &weight}, {"out", &out}, {"bias", bias ? &*bias : &out}}) {
    args.same_device(name, *tensor);
    args.require(args.float_type(name, *tensor) == args.dtype(), name, " has another dtype than x");
    args.require(tensor->is_contiguous(), name, " has strides ", Strides{*tensor}, ", but must be contiguous");
  }
  if (out.numel() == 0) return;
  args.require(!args.empty(), "x has no values to average: shape ", Shape{x});
  const Place place("pool_linear", x);
  kLaunch(args.dtype(), x.data_ptr(), weight.data_ptr(), bias ? bias->data_ptr() : nullptr, out.data_ptr(), n, pixels,
          c, k, place.stream());
}

}  // namespace
}  // namespace resnet_fused

STABLE_TORCH_LIBRARY_FRAGMENT(RESNET_FUSED_NAMESPACE, m) {
  // Global average pool and linear layer: out = x.mean((2, 3)) @ weight.T + bias.
  m.def("pool_linear(Tensor x, Tensor weight, Tensor? bias, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(RESNET_FUSED_NAMESPACE, RESNET_FUSED_CUDA_KEY, m) {
  using namespace resnet_fused;
  m.impl("pool_linear", TORCH_BOX((&pool_linear<cuda::pool_linear>)));
}
