// conv_block: a whole residual block in evaluation on a GPU, in one call: allocations and launches without the Python
// between them. resnet_fused/ops runs the same kernels on the same tensors one by one, so both results are equal bit
// for bit (resnet_fused/modules/one_call.py).
#include "register/cuda/conv_op.h"

namespace resnet_fused {
namespace {

constexpr int64_t kTensors = 5, kNumbers = 8;  // tensors and numbers per convolution

// One convolution with its batch norm: views into the op's lists of arguments.
struct Unit {
  const Tensor *weight, *mean, *var, *bn_weight, *bn_bias;
  Pair stride, padding, dilation;
  int64_t groups;
  bool paired;  // of the first convolution: the projection runs in the same launch
  double eps;
};

Unit unit_of(const Tensor* t, const int64_t* n, double eps) {
  return {t, t + 1, t + 2, t + 3, t + 4, {n[0], n[1]}, {n[2], n[3]}, {n[4], n[5]}, n[6], n[7] != 0, eps};
}

// Whether the kernels can read the tensors. Where they cannot, the block runs op by op, and torch accepts or refuses
// them with its own message.
bool fits(const Unit& unit, const Tensor& x) {
  const auto beside_x = [&x](const Tensor& t) {
    return t.is_cuda() == x.is_cuda() && t.get_device_index() == x.get_device_index();
  };
  for (const Tensor* vector : {unit.mean, unit.var, unit.bn_weight, unit.bn_bias}) {
    const ScalarType type = vector->scalar_type();
    if (!beside_x(*vector) || vector->dim() != 1 || vector->size(0) != unit.weight->size(0) ||
        !vector->is_contiguous() || (type != x.scalar_type() && type != ScalarType::Float)) {
      return false;
    }
  }
  return beside_x(*unit.weight) && unit.weight->scalar_type() == x.scalar_type();
}

Tensor empty_output(const Tensor& x, const Unit& unit) {
  const Tensor& w = *unit.weight;
  const int64_t p = out_size(x.size(2), w.size(2), unit.stride[0], unit.padding[0], unit.dilation[0]);
  const int64_t q = out_size(x.size(3), w.size(3), unit.stride[1], unit.padding[1], unit.dilation[1]);
  return empty_map(x, {x.size(0), w.size(0), p, q});
}

Tensor run(const Tensor& x, const Unit& unit, const OptionalTensor& residual, Activation activation, bool allow_tf32) {
  Tensor out = empty_output(x, unit);
  run_conv_bn_relu(x, channels_last(*unit.weight), *unit.mean, *unit.var, *unit.bn_weight, *unit.bn_bias, residual, out,
                   unit.stride, unit.padding, unit.dilation, unit.groups, unit.eps, activation, allow_tf32);
  return out;
}

OptionalTensor conv_block(Tensor x, std::vector<Tensor> tensors, std::vector<int64_t> numbers, std::vector<double> eps,
                          bool projection, OptionalTensor shortcut, bool allow_tf32) {
  const size_t count = eps.size();
  STD_TORCH_CHECK(
      count > size_t{projection} && tensors.size() == kTensors * count && numbers.size() == kNumbers * count,
      "conv_block: ", tensors.size(), " tensors and ", numbers.size(), " numbers for ", count, " convolutions");
  std::vector<Unit> units;
  for (size_t i = 0; i < count; ++i) {
    units.push_back(unit_of(&tensors[kTensors * i], &numbers[kNumbers * i], eps[i]));
    if (!fits(units.back(), x)) return std::nullopt;
  }
  const size_t last = count - 1 - size_t{projection};
  Tensor out = x, identity = shortcut.value_or(x);
  size_t next = 0;
  if (projection && units[0].paired) {
    const Unit &a = units[0], &b = units.back();
    out = empty_output(x, a);
    identity = empty_output(x, b);
    run_conv_bn_relu_pair(x, channels_last(*a.weight), *a.mean, *a.var, *a.bn_weight, *a.bn_bias, out, a.stride,
                          a.padding, a.dilation, a.eps, channels_last(*b.weight), *b.mean, *b.var, *b.bn_weight,
                          *b.bn_bias, identity, b.stride, b.padding, b.eps, allow_tf32);
    next = 1;
  } else if (projection) {
    identity = run(x, units.back(), std::nullopt, Activation::none, allow_tf32);
  }
  for (; next < last; ++next) out = run(out, units[next], std::nullopt, Activation::relu, allow_tf32);
  return run(out, units[last], identity, Activation::relu, allow_tf32);
}

}  // namespace
}  // namespace resnet_fused

STABLE_TORCH_LIBRARY_FRAGMENT(RESNET_FUSED_NAMESPACE, m) {
  // tensors: weight, mean, var, bn_weight, bn_bias of each convolution; the projection comes last. numbers: stride,
  // padding, dilation (two each), groups, and of the first convolution whether the projection runs in its launch.
  // shortcut: a tensor computed from x, where the shortcut is neither x nor a projection. The op returns None for
  // tensors that the kernels do not take.
  m.def(
      "conv_block(Tensor x, Tensor[] tensors, int[] numbers, float[] eps, bool projection, Tensor? shortcut, "
      "bool allow_tf32) -> Tensor?");
}

STABLE_TORCH_LIBRARY_IMPL(RESNET_FUSED_NAMESPACE, RESNET_FUSED_CUDA_KEY, m) {
  m.impl("conv_block", TORCH_BOX(&resnet_fused::conv_block));
}
