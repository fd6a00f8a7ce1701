// The operators of torch that a ResNet calls on a GPU, without their kernels: they allocate what torch's CUDA operators
// allocate and return. Timed, they tell what an eager network costs the host.
#include <ATen/ExpandUtils.h>
#include <ATen/native/Pool.h>
#include <torch/library.h>

#include "emulator/device/device.h"

namespace pretended {
namespace {

using at::IntArrayRef;
using at::MemoryFormat;
using at::Scalar;
using at::Tensor;
using Optional = std::optional<Tensor>;

Tensor like(const Tensor& t) {
  return t.is_non_overlapping_and_dense() ? empty_like_strided(t.sizes(), t.strides(), t.scalar_type(), t.device())
                                          : empty(t.sizes(), t.scalar_type(), t.device(), t.suggest_memory_format());
}

Tensor& copy_(Tensor& to, const Tensor& from, bool) {
  note("aten::copy_", {&to, &from});
  return to;
}

template <const char* kName>
Tensor& fill(Tensor& self, const Scalar&) {
  note(kName, {&self});
  return self;
}
constexpr char kFill[] = "aten::fill_";
Tensor& zero_(Tensor& self) {
  note("aten::zero_", {&self});
  return self;
}

// cuDNN's convolution takes every tensor in one format: channels_last if the input or the weight is.
Tensor convolution(const Tensor& x, const Tensor& weight, const Optional& bias, IntArrayRef stride, IntArrayRef padding,
                   IntArrayRef dilation, bool transposed, IntArrayRef, int64_t) {
  TORCH_CHECK(!transposed && x.dim() == 4 && weight.dim() == 4, "only convolutions of images are pretended");
  TORCH_CHECK(x.scalar_type() == weight.scalar_type(), "convolution: x is ", x.scalar_type(), ", weight ",
              weight.scalar_type());
  const bool last = x.suggest_memory_format() == MemoryFormat::ChannelsLast ||
                    weight.suggest_memory_format() == MemoryFormat::ChannelsLast;
  const MemoryFormat format = last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  const Tensor dense = x.contiguous(format), filter = weight.contiguous(format);
  std::array<int64_t, 4> size{x.size(0), weight.size(0), 0, 0};
  for (int i = 0; i < 2; ++i) {
    size[2 + i] = (x.size(2 + i) + 2 * padding[i] - dilation[i] * (weight.size(2 + i) - 1) - 1) / stride[i] + 1;
  }
  Tensor out = empty(size, x.scalar_type(), x.device(), format);
  note("aten::convolution", {&dense, &filter, &out});
  if (bias && bias->defined()) note("aten::add_", {&out, &out});
  return out;
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                        at::OptionalIntArrayRef, IntArrayRef, IntArrayRef, IntArrayRef,
                                                        bool, IntArrayRef, int64_t, std::array<bool, 3> mask) {
  const bool last = x.suggest_memory_format() == MemoryFormat::ChannelsLast ||
                    weight.suggest_memory_format() == MemoryFormat::ChannelsLast;
  const MemoryFormat format = last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
  const Tensor dense = grad.contiguous(format);
  Tensor grad_x, grad_weight, grad_bias;
  if (mask[0]) {
    const Tensor filter = weight.contiguous(format);
    grad_x = empty(x.sizes(), x.scalar_type(), x.device(), format);
    note("aten::convolution_backward_input", {&dense, &filter, &grad_x});
  }
  if (mask[1]) {
    const Tensor read = x.contiguous(format);
    grad_weight = empty(weight.sizes(), weight.scalar_type(), weight.device(), format);
    note("aten::convolution_backward_weight", {&dense, &read, &grad_weight});
  }
  if (mask[2]) {
    grad_bias = empty({weight.size(0)}, weight.scalar_type(), weight.device(), MemoryFormat::Contiguous);
    note("aten::convolution_backward_bias", {&dense, &grad_bias});
  }
  return {grad_x, grad_weight, grad_bias};
}

std::tuple<Tensor, Tensor, Tensor> native_batch_norm(const Tensor& x, const Optional&, const Optional&, const Optional&,
                                                     const Optional&, bool training, double, double) {
  Tensor out = like(x);
  const int64_t saved = training ? x.size(1) : 0;
  Tensor mean = empty({saved}, at::kFloat, x.device(), MemoryFormat::Contiguous);
  Tensor invstd = empty({saved}, at::kFloat, x.device(), MemoryFormat::Contiguous);
  // Statistics need all values before one is normalised.
  if (training) note("aten::native_batch_norm_statistics", {&x});
  note("aten::native_batch_norm", {&x, &out});
  return {out, mean, invstd};
}

std::tuple<Tensor, Tensor, Tensor> native_batch_norm_backward(const Tensor& grad, const Tensor& x,
                                                              const Optional& weight, const Optional&, const Optional&,
                                                              const Optional&, const Optional&, bool, double,
                                                              std::array<bool, 3>) {
  const Tensor dense = grad.contiguous(x.suggest_memory_format());
  Tensor out = like(x);
  const auto dtype = weight && weight->defined() ? weight->scalar_type() : at::kFloat;
  Tensor of_weight = empty({x.size(1)}, dtype, x.device(), MemoryFormat::Contiguous);
  Tensor of_bias = empty({x.size(1)}, dtype, x.device(), MemoryFormat::Contiguous);
  note("aten::native_batch_norm_backward_reduce", {&dense, &x});
  note("aten::native_batch_norm_backward", {&dense, &x, &out});
  return {out, of_weight, of_bias};
}

Tensor relu(const Tensor& x) {
  Tensor out = like(x);
  note("aten::relu", {&x, &out});
  return out;
}

Tensor& relu_(Tensor& x) {
  note("aten::relu_", {&x, &x});
  return x;
}

Tensor threshold_backward(const Tensor& grad, const Tensor& x, const Scalar&) {
  Tensor out = like(x);
  note("aten::threshold_backward", {&grad, &x, &out});
  return out;
}

Tensor add(const Tensor& x, const Tensor& y, const Scalar&) {
  Tensor out = x.sizes() == y.sizes()
                   ? like(x)
                   : empty(at::infer_size(x.sizes(), y.sizes()), x.scalar_type(), x.device(), MemoryFormat::Contiguous);
  note("aten::add", {&x, &y, &out});
  return out;
}

Tensor& add_(Tensor& x, const Tensor& y, const Scalar&) {
  note("aten::add_", {&x, &y, &x});
  return x;
}

std::tuple<Tensor, Tensor> max_pool2d_with_indices(const Tensor& x, IntArrayRef kernel, IntArrayRef stride,
                                                   IntArrayRef padding, IntArrayRef dilation, bool ceil_mode) {
  std::array<int64_t, 4> size{x.size(0), x.size(1), 0, 0};
  const auto at = [](IntArrayRef list, int i, int64_t otherwise) {
    return list.empty() ? otherwise : list[list.size() == 1 ? 0 : i];
  };
  for (int i = 0; i < 2; ++i) {
    const int64_t k = at(kernel, i, 1);
    size[2 + i] = at::native::pooling_output_shape<int64_t>(x.size(2 + i), k, at(padding, i, 0), at(stride, i, k),
                                                            at(dilation, i, 1), ceil_mode);
  }
  Tensor out = empty(size, x.scalar_type(), x.device(), x.suggest_memory_format());
  Tensor indices = empty(size, at::kLong, x.device(), x.suggest_memory_format());
  note("aten::max_pool2d_with_indices", {&x, &out, &indices});
  return {out, indices};
}

Tensor max_pool2d_with_indices_backward(const Tensor& grad, const Tensor& x, IntArrayRef, IntArrayRef, IntArrayRef,
                                        IntArrayRef, bool, const Tensor& indices) {
  Tensor out = empty(x.sizes(), x.scalar_type(), x.device(), x.suggest_memory_format());
  note("aten::max_pool2d_with_indices_backward", {&grad, &indices, &out});
  return out;
}

Tensor mean(const Tensor& x, at::OptionalIntArrayRef dims, bool keep, std::optional<at::ScalarType> dtype) {
  std::vector<int64_t> size;
  for (int64_t d = 0; d < x.dim(); ++d) {
    bool reduced = !dims || dims->empty();
    for (const int64_t other : dims.value_or(IntArrayRef{})) reduced |= other == d || other + x.dim() == d;
    if (!reduced) size.push_back(x.size(d));
    if (reduced && keep) size.push_back(1);
  }
  Tensor out = empty(size, dtype.value_or(x.scalar_type()), x.device(), MemoryFormat::Contiguous);
  note("aten::mean", {&x, &out});
  return out;
}

Tensor mm(const Tensor& a, const Tensor& b) {
  Tensor out = empty({a.size(0), b.size(1)}, a.scalar_type(), a.device(), MemoryFormat::Contiguous);
  note("aten::mm", {&a, &b, &out});
  return out;
}

Tensor addmm(const Tensor& bias, const Tensor& a, const Tensor& b, const Scalar&, const Scalar&) {
  Tensor out = empty({a.size(0), b.size(1)}, a.scalar_type(), a.device(), MemoryFormat::Contiguous);
  note("aten::addmm", {&bias, &a, &b, &out});
  return out;
}

void foreach_lerp_(at::TensorList self, at::TensorList to, const Scalar&) {
  note_lists("aten::_foreach_lerp_", {self, to, self});
}

void foreach_add_(at::TensorList self, const Scalar&) { note_lists("aten::_foreach_add_", {self, self}); }

void foreach_zero_(at::TensorList self) { note_lists("aten::_foreach_zero_", {self}); }

void foreach_copy_(at::TensorList self, at::TensorList from, bool) { note_lists("aten::_foreach_copy_", {self, from}); }

// Every value that the host asks for is 0.
Scalar local_scalar_dense(const Tensor& t) {
  note("aten::_local_scalar_dense", {&t});
  return t.scalar_type() == at::kBool ? Scalar(false) : at::isFloatingType(t.scalar_type()) ? Scalar(0.0) : Scalar(0);
}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("copy_", &copy_);
  m.impl("fill_.Scalar", &fill<kFill>);
  m.impl("zero_", &zero_);
  m.impl("convolution", &convolution);
  m.impl("convolution_backward", &convolution_backward);
  m.impl("native_batch_norm", &native_batch_norm);
  m.impl("native_batch_norm_backward", &native_batch_norm_backward);
  m.impl("relu", &relu);
  m.impl("relu_", &relu_);
  m.impl("threshold_backward", &threshold_backward);
  m.impl("add.Tensor", &add);
  m.impl("add_.Tensor", &add_);
  m.impl("max_pool2d_with_indices", &max_pool2d_with_indices);
  m.impl("max_pool2d_with_indices_backward", &max_pool2d_with_indices_backward);
  m.impl("mean.dim", &mean);
  m.impl("mm", &mm);
  m.impl("addmm", &addmm);
  m.impl("_foreach_lerp_.Scalar", &foreach_lerp_);
  m.impl("_foreach_add_.Scalar", &foreach_add_);
  m.impl("_foreach_copy_", &foreach_copy_);
  m.impl("_foreach_zero_", &foreach_zero_);
  m.impl("_local_scalar_dense", &local_scalar_dense);
}

}  // namespace
}  // namespace pretended
