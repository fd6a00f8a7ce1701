// Checks of the tensors that a launcher gets, and the numbers about them that a launcher needs. Every failure is one
// line that names the op, the argument and the two values that disagree. torch turns it into a RuntimeError.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "ops.h"

namespace resnet_fused {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Parts of a message. They become text only when a check has failed: a string per argument and call took longer than a
// small launch.
struct Shape {
  const Tensor& tensor;
};
struct Strides {
  const Tensor& tensor;
};
struct Type {
  const Tensor& tensor;
};
struct DeviceOf {
  const Tensor& tensor;
};
std::ostream& operator<<(std::ostream& to, Shape part);
std::ostream& operator<<(std::ostream& to, Strides part);
std::ostream& operator<<(std::ostream& to, Type part);
std::ostream& operator<<(std::ostream& to, DeviceOf part);

// The arguments of one call of `op`. They are compared with the first argument, x, which sets shape, dtype, strides and
// device.
class Arguments {
 public:
  Arguments(const char* op, const char* name, const Tensor& x);

  template <class... Parts>
  void require(bool ok, const Parts&... parts) const {
    if (ok) return;
    std::ostringstream message;
    message << op_ << ": ";
    (message << ... << parts);
    throw std::runtime_error(message.str());
  }

  DType dtype() const { return dtype_; }
  int64_t size() const { return x_.numel(); }
  bool empty() const { return size() == 0; }
  // x viewed as [outer, channels, inner]. x must be [N, C, ...].
  Layout layout() const;

  // A tensor with the shape, dtype, strides and device of x. nullptr if absent.
  void* like(const char* name, const Tensor& tensor) const;
  void* like(const char* name, const OptionalTensor& tensor) const { return tensor ? like(name, *tensor) : nullptr; }
  // A per-channel parameter of any dtype that the kernels take.
  Channels channels(const char* name, const OptionalTensor& tensor) const;
  MutableChannels mutable_channels(const char* name, const OptionalTensor& tensor) const;
  // Per-channel float32 values that another launch writes or reads.
  float* statistics(const char* name, const OptionalTensor& tensor) const;
  const int64_t* counter(const char* name, const OptionalTensor& tensor) const;
  void same_device(const char* name, const Tensor& tensor) const;
  DType float_type(const char* name, const Tensor& tensor) const;

 private:
  void channel_vector(const char* name, const Tensor& tensor) const;

  const char *op_, *name_;
  const Tensor& x_;
  DType dtype_;
};

bool is_channels_last(const Tensor& tensor);
// The tensor itself where it is channels_last, else a dense copy that is.
Tensor channels_last(const Tensor& tensor);

using Sizes = torch::headeronly::IntHeaderOnlyArrayRef;
// Tensors without values, on the device of `like`.
Tensor empty_strided(const Tensor& like, Sizes sizes, Sizes strides, ScalarType type);
Tensor empty(const Tensor& like, std::initializer_list<int64_t> sizes, ScalarType type);  // contiguous
// A map [n, channels, h, w] in channels_last with the dtype of `like`.
Tensor empty_map(const Tensor& like, Sizes sizes);

// The activation of an op's `int activation`. `able` names the activations of the op's kernel, and every other one is
// refused, also one that is added to ops.h later.
Activation activation_of(const char* op, int64_t activation, std::initializer_list<Activation> able);

// The device and stream of a launch: makes x's device current, and asks torch for the stream that it would use there.
class Place {
 public:
  Place(const char* op, const Tensor& x);
  void* stream() const { return stream_; }

 private:
  std::optional<torch::stable::accelerator::DeviceGuard> guard_;
  void* stream_ = nullptr;
};

// Device memory that lives as long as this object, aligned to 256 bytes. torch's allocator orders by stream, so the
// memory may be given back while the launch still uses it.
class Scratch {
 public:
  Scratch(const Tensor& like, size_t bytes);
  void* data() const { return data_; }

 private:
  OptionalTensor memory_;
  void* data_ = nullptr;
};

}  // namespace resnet_fused
