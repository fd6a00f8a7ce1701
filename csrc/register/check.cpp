#include "register/check.h"

#include <torch/headeronly/core/ScalarType.h>

// The function lies in libtorch_cuda.so, which a torch without CUDA does not have. It is found when the library is
// loaded, or it is null.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace resnet_fused {
namespace {

template <class List>
std::ostream& write(std::ostream& to, const List& list) {
  to << '[';
  for (size_t i = 0; i < list.size(); ++i) to << (i ? ", " : "") << list[i];
  return to << ']';
}

// Strides of dimensions with one element have no meaning and are not compared.
bool same_strides(const Tensor& a, const Tensor& b) {
  const auto sizes = a.sizes(), left = a.strides(), right = b.strides();
  for (size_t i = 0; i < sizes.size(); ++i) {
    if (sizes[i] > 1 && left[i] != right[i]) return false;
  }
  return true;
}

bool same_shape(const Tensor& a, const Tensor& b) {
  const auto left = a.sizes(), right = b.sizes();
  if (left.size() != right.size()) return false;
  for (size_t i = 0; i < left.size(); ++i) {
    if (left[i] != right[i]) return false;
  }
  return true;
}

}  // namespace

std::ostream& operator<<(std::ostream& to, Shape part) { return write(to, part.tensor.sizes()); }
std::ostream& operator<<(std::ostream& to, Strides part) { return write(to, part.tensor.strides()); }
std::ostream& operator<<(std::ostream& to, Type part) {
  return to << torch::headeronly::toString(part.tensor.scalar_type());
}
std::ostream& operator<<(std::ostream& to, DeviceOf part) {
  if (part.tensor.is_cpu()) return to << "cpu";
  return to << (part.tensor.is_cuda() ? "cuda:" : "another device, index ") << part.tensor.get_device_index();
}

bool is_channels_last(const Tensor& tensor) {
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  if (sizes.size() < 3) return false;
  if (sizes[1] > 1 && strides[1] != 1) return false;
  int64_t expected = sizes[1];
  for (size_t i = sizes.size() - 1; i >= 2; --i) {
    if (sizes[i] > 1 && strides[i] != expected) return false;
    expected *= sizes[i];
  }
  return sizes[0] <= 1 || strides[0] == expected;
}

Tensor channels_last(const Tensor& tensor) {
  using torch::headeronly::MemoryFormat;
  return is_channels_last(tensor) ? tensor : torch::stable::contiguous(tensor, MemoryFormat::ChannelsLast);
}

// Past torch's dispatcher, which takes a microsecond more.
Tensor empty_strided(const Tensor& like, Sizes sizes, Sizes strides, ScalarType type) {
  using torch::stable::detail::from;
  int32_t device = 0;
  AtenTensorHandle out = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(),
                                                  torch::stable::detail::to<int32_t>(from(type)), device,
                                                  like.get_device_index(), &out));
  return Tensor(out);
}

Tensor empty(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType type) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size(); i-- > 1;) strides[i - 1] = strides[i] * std::data(sizes)[i];
  return empty_strided(like, sizes, strides, type);
}

Tensor empty_map(const Tensor& like, Sizes sizes) {
  const int64_t c = sizes[1], w = sizes[3], row = c * w, strides[] = {row * sizes[2], 1, row, c};
  return empty_strided(like, sizes, {strides, 4}, like.scalar_type());
}

Activation activation_of(const char* op, int64_t activation, std::initializer_list<Activation> able) {
  constexpr const char* kNames[] = {"none", "relu"};
  std::ostringstream message;
  message << op << ": activation is " << activation << ", but the kernel has ";
  const char* separator = "";
  for (const Activation one : able) {
    const int number = static_cast<int>(one);
    if (number == activation) return one;
    message << separator << number << " (" << kNames[number] << ')';
    separator = ", ";
  }
  throw std::runtime_error(message.str());
}

Arguments::Arguments(const char* op, const char* name, const Tensor& x)
    : op_(op), name_(name), x_(x), dtype_(float_type(name, x)) {
  require(empty() || x.is_contiguous() || is_channels_last(x), name,
          " must be contiguous or channels_last, but has strides ", Strides{x}, " for shape ", Shape{x});
}

DType Arguments::float_type(const char* name, const Tensor& tensor) const {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::Half:
      return DType::f16;
    case ScalarType::BFloat16:
      return DType::bf16;
    default:
      break;
  }
  require(false, name, " has dtype ", Type{tensor}, ", but the kernels take Float, Half or BFloat16");
  return DType::f32;
}

Layout Arguments::layout() const {
  const auto sizes = x_.sizes();
  require(sizes.size() >= 2, name_, " must have at least 2 dimensions, but has shape ", Shape{x_});
  const int64_t channels = sizes[1], size = x_.numel();
  if (channels == 1 || size == 0) return {dtype_, 1, channels, channels == 1 ? size : 0};
  const int64_t outer = x_.is_contiguous() ? sizes[0] : size / channels;
  return {dtype_, outer, channels, size / channels / outer};
}

void Arguments::same_device(const char* name, const Tensor& tensor) const {
  const bool same = tensor.is_cpu() ? x_.is_cpu()
                                    : tensor.is_cuda() == x_.is_cuda() && !x_.is_cpu() &&
                                          tensor.get_device_index() == x_.get_device_index();
  require(same, name, " is on ", DeviceOf{tensor}, ", but ", name_, " is on ", DeviceOf{x_});
}

void* Arguments::like(const char* name, const Tensor& tensor) const {
  same_device(name, tensor);
  require(same_shape(tensor, x_), name, " has shape ", Shape{tensor}, ", but ", name_, " has ", Shape{x_});
  require(tensor.scalar_type() == x_.scalar_type(), name, " has dtype ", Type{tensor}, ", but ", name_, " has ",
          Type{x_});
  require(empty() || same_strides(tensor, x_), name, " has strides ", Strides{tensor}, ", but ", name_, " has ",
          Strides{x_});
  return tensor.data_ptr();
}

void Arguments::channel_vector(const char* name, const Tensor& tensor) const {
  same_device(name, tensor);
  const int64_t channels = x_.sizes()[1];
  require(tensor.dim() == 1 && tensor.size(0) == channels, name, " has shape ", Shape{tensor}, ", but ", name_, " has ",
          channels, " channels");
  require(channels == 1 || tensor.stride(0) == 1, name, " has stride ", Strides{tensor}, ", but must be dense");
}

Channels Arguments::channels(const char* name, const OptionalTensor& tensor) const {
  const MutableChannels found = mutable_channels(name, tensor);
  return {found.data, found.dtype};
}

MutableChannels Arguments::mutable_channels(const char* name, const OptionalTensor& tensor) const {
  if (!tensor) return {nullptr, DType::f32};
  channel_vector(name, *tensor);
  return {tensor->data_ptr(), float_type(name, *tensor)};
}

float* Arguments::statistics(const char* name, const OptionalTensor& tensor) const {
  if (!tensor) return nullptr;
  channel_vector(name, *tensor);
  require(tensor->scalar_type() == ScalarType::Float, name, " has dtype ", Type{*tensor}, ", but must be Float");
  return static_cast<float*>(tensor->data_ptr());
}

const int64_t* Arguments::counter(const char* name, const OptionalTensor& tensor) const {
  if (!tensor) return nullptr;
  same_device(name, *tensor);
  require(tensor->scalar_type() == ScalarType::Long && tensor->numel() == 1, name, " has dtype ", Type{*tensor},
          " and shape ", Shape{*tensor}, ", but must be one Long");
  return static_cast<const int64_t*>(tensor->data_ptr());
}

Place::Place(const char* op, const Tensor& x) {
  if (!x.is_cuda()) return;
  guard_.emplace(x.get_device_index());
  if (!aoti_torch_get_current_cuda_stream) throw std::runtime_error(std::string(op) + ": this torch has no CUDA");
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream_));
}

Scratch::Scratch(const Tensor& like, size_t bytes) {
  constexpr size_t kAlignment = 256;
  if (bytes == 0) return;
  const int64_t size = static_cast<int64_t>(bytes + kAlignment - 1);
  memory_ = empty(like, {size}, ScalarType::Byte);
  const auto address = reinterpret_cast<uintptr_t>(memory_->data_ptr());
  data_ = reinterpret_cast<void*>((address + kAlignment - 1) / kAlignment * kAlignment);
}

}  // namespace resnet_fused
