// training_blocks_backward: the backward of training_blocks in one call (resnet_fused/ops/training/residual.py runs the
// same kernels in the same order, pass by pass). Both gradients of a convolution are torch's.
#include <algorithm>

#include "register/cuda/training.h"

namespace resnet_fused {
namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;

constexpr char kOp[] = "training_blocks_backward";

// The gradients of one batch norm; `masked`: the gradient before the ReLU.
struct NormGradients {
  OptionalTensor z, weight, bias, masked;
};

// As norm_backward of ops/training/unit.py, which says what each argument means.
NormGradients norm_backward(Tensor grad, const OptionalTensor& z, OptionalTensor out, const Unit& unit,
                            const Tensor& stats, bool want_z, bool want_affine, bool want_masked, OptionalTensor grad2,
                            void* stream) {
  NormGradients found;
  const Arguments args(kOp, "grad", grad);
  const Layout layout = args.layout();
  const Norm norm = norm_of(args, unit, stats);
  const void *values = args.like("z", z), *more = args.like("grad2", grad2), *mask = args.like("out", out);
  const void* read = grad.data_ptr();
  const OptionalTensor masked = want_masked && !grad2 ? OptionalTensor(empty_map(grad, grad.sizes())) : grad2;
  void* to_write = want_masked ? masked->data_ptr() : nullptr;
  Activation activation = mask ? Activation::relu : Activation::none;
  float *sum_g = nullptr, *sum_gx = nullptr;
  if (want_affine || (unit.of_batch() && want_z)) {
    found.bias = empty(grad, {layout.channels}, ScalarType::Float);
    sum_g = static_cast<float*>(found.bias->data_ptr());
    if (values) {
      found.weight = empty(grad, {layout.channels}, ScalarType::Float);
      sum_gx = static_cast<float*>(found.weight->data_ptr());
    }
    const Scratch scratch(grad, cuda::bn_relu_backward_reduce_scratch(layout));
    cuda::bn_relu_backward_reduce(layout, read, more, values, mask, norm, sum_g, sum_gx,
                                  masked ? masked->data_ptr() : nullptr, activation, scratch.data(), stream);
    if (masked) {
      read = masked->data_ptr();
      more = mask = to_write = nullptr;
      activation = Activation::none;
    }
  }
  if (want_z) found.z = empty_map(grad, grad.sizes());
  if (want_z || to_write) {
    cuda::bn_relu_backward_apply(layout, read, more, values, mask, norm, sum_g, sum_gx,
                                 want_z ? found.z->data_ptr() : nullptr, to_write, activation, stream);
  }
  if (want_masked) found.masked = masked;
  return found;
}

// (gradient of x, gradient of the weight in the weight's strides), nothing where not wanted; by torch.
std::array<OptionalTensor, 2> conv_backward(const Tensor& grad, const Tensor& x, const Unit& unit, bool want_x,
                                            bool want_weight) {
  if (!want_x && !want_weight) return {};
  const std::array<bool, 3> wanted{want_x, want_weight, false};
  std::array<StableIValue, 11> stack{from(grad),
                                     from(x),
                                     from(unit.weight()),
                                     from(std::nullopt),
                                     from(unit.stride),
                                     from(unit.padding),
                                     from(unit.dilation),
                                     from(false),
                                     from(Pair{0, 0}),
                                     from(unit.groups),
                                     from(torch::headeronly::HeaderOnlyArrayRef<bool>(wanted.data(), wanted.size()))};
  call_torch("aten::convolution_backward", stack);
  const Tensor grad_x = to<Tensor>(stack[0]), grad_weight = to<Tensor>(stack[1]), unused = to<Tensor>(stack[2]);
  std::array<OptionalTensor, 2> found;
  if (want_x) found[0] = grad_x;
  if (!want_weight) return found;
  const auto is = grad_weight.strides(), should = unit.weight().strides();
  found[1] = grad_weight;
  if (!std::equal(is.begin(), is.end(), should.begin(), should.end())) {
    found[1] = empty_strided(grad_weight, grad_weight.sizes(), should, grad_weight.scalar_type());
    torch::stable::copy_(*found[1], grad_weight);
  }
  return found;
}

// The backward of a run, in one object: what the blocks share.
class Backward {
 public:
  Backward(const std::vector<Tensor>& tensors, const std::vector<int64_t>& wanted, void* stream)
      : grads(tensors.size()), wanted_(wanted), stream_(stream) {}

  bool wants(const Unit& unit, Part part) const { return unit.has(part) && wanted_[unit.at[part]] != 0; }
  bool wants_affine(const Unit& unit) const { return wants(unit, kBnWeight) || wants(unit, kBnBias); }
  bool wants(const Unit& unit) const { return wants(unit, kWeight) || wants_affine(unit); }
  bool wants(const Block& block) const {
    return std::any_of(block.units.begin(), block.units.end(), [this](const Unit& unit) { return wants(unit); });
  }

  // The two summands of the gradient of the block's input x, from grad + grad2 of its output y. `saved`: the block's
  // outputs of convolutions, each with its statistics.
  std::array<OptionalTensor, 2> block(const Tensor& grad, const OptionalTensor& grad2, const Tensor& x, const Tensor& y,
                                      const Block& block, const Tensor* saved, bool want_x) {
    const size_t last = block.last();
    const auto z = [&](size_t u) { return saved[2 * u].dim() == 1 ? std::nullopt : OptionalTensor(saved[2 * u]); };
    const auto norm = [&](size_t u, const Tensor& of_out, const OptionalTensor& out, bool want_z, bool want_masked,
                          const OptionalTensor& more) {
      const Unit& unit = block.units[u];
      NormGradients found = norm_backward(of_out, z(u), out, unit, saved[2 * u + 1], want_z, wants_affine(unit),
                                          want_masked, more, stream_);
      keep(unit, kBnWeight, found.weight);
      keep(unit, kBnBias, found.bias);
      return found;
    };
    // Whether the units before each want a gradient, and whether each wants that of its convolution's output.
    std::vector<bool> before{want_x}, want_z;
    for (size_t u = 0; u <= last; ++u) {
      want_z.push_back(before[u] || wants(block.units[u], kWeight));
      before.push_back(before[u] || wants(block.units[u]));
    }
    const bool projects = block.projects && (want_x || wants(block.units.back()));
    NormGradients found = norm(last, grad, y, want_z[last], block.projects ? projects : want_x, grad2);
    OptionalTensor shortcut = found.masked, grad_h;
    if (projects) {
      const Unit& unit = block.units.back();
      const bool weight = wants(unit, kWeight);
      const NormGradients beside = norm(last + 1, *shortcut, std::nullopt, want_x || weight, false, std::nullopt);
      if (want_x || weight) shortcut = convolution(*beside.z, x, unit, want_x);
    }
    for (size_t u = last; want_z[u]; --u) {
      const Tensor h =
          u == 0 ? x : normalise(kOp, saved[2 * u - 2], block.units[u - 1], saved[2 * u - 1], std::nullopt, stream_);
      grad_h = convolution(*found.z, h, block.units[u], before[u]);
      if (u == 0 || !before[u]) break;
      found = norm(u - 1, channels_last(*grad_h), h, want_z[u - 1], false, std::nullopt);
    }
    return want_x ? std::array<OptionalTensor, 2>{grad_h, shortcut} : std::array<OptionalTensor, 2>{};
  }

  std::vector<OptionalTensor> grads;  // of the tensors

 private:
  void keep(const Unit& unit, Part part, const OptionalTensor& grad) {
    if (wants(unit, part)) grads[unit.at[part]] = grad;
  }

  // The gradient of x where that is wanted; keeps the gradient of the weight.
  OptionalTensor convolution(const Tensor& grad, const Tensor& x, const Unit& unit, bool want_x) {
    const auto found = conv_backward(grad, x, unit, want_x, wants(unit, kWeight));
    keep(unit, kWeight, found[1]);
    return found[0];
  }

  const std::vector<int64_t>& wanted_;
  void* stream_;
};

// (gradient of x, a second summand of it, gradients of `tensors`); a tensor without values where not wanted.
std::vector<Tensor> backward(Tensor grad, Tensor x, Tensor y, std::vector<Tensor> tensors, std::vector<Tensor> saved,
                             std::vector<int64_t> numbers, std::vector<double> eps, bool want_x,
                             std::vector<int64_t> wanted) {
  const std::vector<Block> blocks = decode(kOp, tensors, numbers, eps);
  const size_t units = eps.size();
  STD_TORCH_CHECK(wanted.size() == tensors.size() && saved.size() + 1 == 2 * units + blocks.size(), kOp, ": ",
                  saved.size(), " saved tensors and ", wanted.size(), " flags for ", units, " convolutions");
  const Place place(kOp, x);
  Backward run(tensors, wanted, place.stream());
  std::array<OptionalTensor, 2> of_x{grad, std::nullopt};
  size_t first = units;
  for (size_t b = blocks.size(); b-- > 0;) {
    first -= blocks[b].units.size();
    const bool before = std::any_of(blocks.begin(), blocks.begin() + static_cast<std::ptrdiff_t>(b),
                                    [&run](const Block& block) { return run.wants(block); });
    const Tensor& out = b + 1 == blocks.size() ? y : saved[2 * units + b];
    const OptionalTensor more = of_x[1] ? OptionalTensor(channels_last(*of_x[1])) : std::nullopt;
    of_x = run.block(channels_last(*of_x[0]), more, b == 0 ? x : saved[2 * units + b - 1], out, blocks[b],
                     &saved[2 * first], want_x || before);
    if (!want_x && !before) break;
  }
  std::vector<Tensor> found, wide, narrow;
  for (const OptionalTensor& of : of_x) found.push_back(of ? *of : empty(x, {0}, x.scalar_type()));
  for (size_t t = 0; t < tensors.size(); ++t) {
    const OptionalTensor& of = run.grads[t];
    const ScalarType type = tensors[t].scalar_type();
    if (of && of->scalar_type() == type) {
      found.push_back(*of);
      continue;
    }
    found.push_back(of ? empty_strided(*of, of->sizes(), of->strides(), type) : empty(tensors[t], {0}, type));
    if (of) {
      wide.push_back(*of);
      narrow.push_back(found.back());
    }
  }
  if (!wide.empty()) {  // one launch
    std::array<StableIValue, 3> stack{from(narrow), from(wide), from(false)};
    call_torch("aten::_foreach_copy_", stack);
  }
  return found;
}

}  // namespace
}  // namespace resnet_fused

STABLE_TORCH_LIBRARY_FRAGMENT(RESNET_FUSED_NAMESPACE, m) {
  // saved: what training_blocks returned after y. wanted: for each of `tensors`, whether its gradient is wanted. The op
  // returns two summands of the gradient of x, then the gradients of `tensors`; what is not wanted has no values.
  m.def(
      "training_blocks_backward(Tensor grad, Tensor x, Tensor y, Tensor[] tensors, Tensor[] saved, int[] numbers, "
      "float[] eps, bool want_x, int[] wanted) -> Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(RESNET_FUSED_NAMESPACE, RESNET_FUSED_CUDA_KEY, m) {
  m.impl("training_blocks_backward", TORCH_BOX(&resnet_fused::backward));
}
