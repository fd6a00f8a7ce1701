// A CUDA device that is not there, for a torch without CUDA: a device guard, an allocator and the operators that make
// tensors, under torch's own device type and dispatch key. Addresses are handed out and never read, so networks of any
// size fit. An operator without a kernel in operators.cpp runs by its meta kernel, which computes shapes and strides.
#include "emulator/device/device.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/Allocator.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>
#include <map>
#include <mutex>
#include <unordered_map>

namespace pretended {
namespace {

thread_local int current = 0;
std::atomic<uintptr_t> next_address{uintptr_t{1} << 40};
std::atomic<bool> records{false};
std::mutex lock;
struct Noted {
  int64_t count = 0, bytes = 0;
};
std::map<std::string, Noted> noted;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return at::kCUDA; }
  c10::Device exchangeDevice(c10::Device to) const override {
    const c10::Device before = getDevice();
    current = to.index();
    return before;
  }
  c10::Device getDevice() const override { return {at::kCUDA, static_cast<c10::DeviceIndex>(current)}; }
  void setDevice(c10::Device to) const override { current = to.index(); }
  void uncheckedSetDevice(c10::Device to) const noexcept override { current = to.index(); }
  c10::Stream getStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream getDefaultStream(c10::Device device) const override { return getStream(device); }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override { return getStream(device); }
  c10::Stream getNewStream(c10::Device device, int) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return getStream(stream.device()); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }
};

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  c10::DeviceIndex deviceCount() const override { return kDevices; }
  int getNumGPUs() const override { return kDevices; }
  c10::DeviceIndex current_device() const override { return static_cast<c10::DeviceIndex>(current); }
  c10::DeviceIndex getCurrentDevice() const override { return current_device(); }
  void setCurrentDevice(c10::DeviceIndex to) const override { current = to; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex to) const override {
    const c10::DeviceIndex before = current_device();
    current = to;
    return before;
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex to) const override { return exchangeDevice(to); }
};

void nothing(void*) {}

struct Addresses final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* address = reinterpret_cast<void*>(next_address.fetch_add((bytes + 511) / 512 * 512 + 512));
    return {address, address, &nothing, c10::Device(at::kCUDA, static_cast<c10::DeviceIndex>(current))};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &nothing; }
  void copy_data(void*, const void*, std::size_t) const override {}
};

Addresses addresses;
const c10::DispatchKeySet kKeys(c10::DispatchKey::CUDA);

C10_REGISTER_GUARD_IMPL(CUDA, Guard)
using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, Hooks)
const bool registered = (c10::SetAllocator(at::kCUDA, &addresses), true);

at::Device device_or_current(std::optional<at::Device> device) {
  return {at::kCUDA, static_cast<c10::DeviceIndex>(device && device->has_index() ? device->index() : current)};
}

at::Tensor make_empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                      std::optional<at::Device> device, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return empty(size, dtype.value_or(at::kFloat), device_or_current(device),
               format.value_or(at::MemoryFormat::Contiguous));
}

at::Tensor make_empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                              std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>) {
  return empty_like_strided(size, stride, dtype.value_or(at::kFloat), device_or_current(device));
}

at::Tensor as_strided(const at::Tensor& self, at::IntArrayRef size, at::IntArrayRef stride,
                      std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, size, stride, offset);
}

at::Tensor& set_(at::Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
  self.unsafeGetTensorImpl()->set_storage_offset(offset);
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride);
  return self;
}

// Turns the tensors of one call into meta tensors and back. A meta tensor that came in goes out as the tensor that it
// stands for, since the operator wrote into it.
class Translation {
 public:
  c10::IValue there(const c10::IValue& value) {
    if (value.isTensor()) return meta(value.toTensor());
    if (value.isTensorList()) {
      c10::List<at::Tensor> found;
      for (const at::Tensor& t : value.toTensorVector()) found.push_back(meta(t));
      return found;
    }
    if (value.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> found;
      for (const std::optional<at::Tensor>& t : value.toOptionalTensorVector()) {
        found.push_back(t ? std::optional(meta(*t)) : std::nullopt);
      }
      return found;
    }
    if (value.isDevice()) return c10::Device(at::kMeta);
    return value;
  }

  c10::IValue back(const c10::IValue& value) {
    if (value.isTensor()) return real(value.toTensor());
    if (value.isTensorList()) {
      c10::List<at::Tensor> found;
      for (const at::Tensor& t : value.toTensorVector()) found.push_back(real(t));
      return found;
    }
    return value;
  }

  int64_t bytes() const { return bytes_; }

 private:
  at::Tensor meta(const at::Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    if (tensor.is_cuda()) device_ = tensor.device();
    bytes_ += static_cast<int64_t>(tensor.nbytes());
    at::Tensor found(at::detail::empty_strided_meta(tensor.sizes(), tensor.strides(), tensor.scalar_type()));
    stands_for_.emplace(found.unsafeGetTensorImpl(), std::pair(found, tensor));
    return found;
  }

  at::Tensor real(const at::Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    const auto known = stands_for_.find(tensor.unsafeGetTensorImpl());
    if (known != stands_for_.end()) return known->second.second;
    bytes_ += static_cast<int64_t>(tensor.nbytes());
    return empty_like_strided(tensor.sizes(), tensor.strides(), tensor.scalar_type(), device_);
  }

  std::unordered_map<c10::TensorImpl*, std::pair<at::Tensor, at::Tensor>> stands_for_;
  at::Device device_{at::kCUDA, static_cast<c10::DeviceIndex>(current)};
  int64_t bytes_ = 0;
};

void add(const std::string& name, int64_t bytes) {
  const std::lock_guard guard(lock);
  Noted& found = noted[name];
  ++found.count;
  found.bytes += bytes;
}

void by_shapes(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  Translation translation;
  const size_t arguments = op.schema().arguments().size(), results = op.schema().returns().size();
  torch::jit::Stack called;
  for (size_t i = stack->size() - arguments; i < stack->size(); ++i) called.push_back(translation.there((*stack)[i]));
  stack->resize(stack->size() - arguments);
  {
    const c10::impl::ExcludeDispatchKeyGuard only_meta(c10::autograd_dispatch_keyset);
    op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::Meta), &called);
  }
  TORCH_CHECK(called.size() == results, op.schema().name(), ": ", called.size(), " results");
  for (const c10::IValue& result : called) stack->push_back(translation.back(result));
  if (records) add(op.schema().name(), translation.bytes());
}

TORCH_LIBRARY_IMPL(_, CUDA, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&by_shapes>()); }

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &make_empty);
  m.impl("empty_strided", &make_empty_strided);
  m.impl("as_strided", &as_strided);
  m.impl("view", static_cast<at::Tensor (*)(const at::Tensor&, at::IntArrayRef)>(&at::native::view));
  m.impl("set_.source_Storage_storage_offset", &set_);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
}

}  // namespace

int current_device() { return current; }

at::Tensor empty(at::IntArrayRef size, at::ScalarType dtype, at::Device device, at::MemoryFormat format) {
  const int before = current;
  current = device.index();
  at::Tensor found(at::detail::empty_generic(size, &addresses, kKeys, dtype, format));
  current = before;
  return found;
}

at::Tensor empty_like_strided(at::IntArrayRef size, at::IntArrayRef stride, at::ScalarType dtype, at::Device device) {
  const int before = current;
  current = device.index();
  at::Tensor found(at::detail::empty_strided_generic(size, stride, &addresses, kKeys, dtype));
  current = before;
  return found;
}

void note(const char* name, std::initializer_list<const at::Tensor*> tensors) {
  if (!records) return;
  int64_t bytes = 0;
  for (const at::Tensor* t : tensors) bytes += t->defined() ? static_cast<int64_t>(t->nbytes()) : 0;
  add(name, bytes);
}

void note_lists(const char* name, std::initializer_list<at::TensorList> lists) {
  if (!records) return;
  int64_t bytes = 0;
  for (const at::TensorList list : lists) {
    for (const at::Tensor& t : list) bytes += static_cast<int64_t>(t.nbytes());
  }
  add(name, bytes);
}

}  // namespace pretended

// For ctypes.
extern "C" __attribute__((visibility("default"))) int pretended_device(int to) {
  const int before = pretended::current;
  if (to >= 0) pretended::current = to;
  return before;
}

extern "C" __attribute__((visibility("default"))) void pretended_record(int on) {
  pretended::records = on != 0;
  if (on) pretended::noted.clear();
}

// One line for each operator: name, calls, bytes.
extern "C" __attribute__((visibility("default"))) const char* pretended_recorded() {
  static std::string text;
  text.clear();
  for (const auto& [name, of] : pretended::noted) {
    text += name + ' ' + std::to_string(of.count) + ' ' + std::to_string(of.bytes) + '\n';
  }
  return text.c_str();
}

// The registration code asks torch for the stream of a launch.
extern "C" __attribute__((visibility("default"))) int aoti_torch_get_current_cuda_stream(int, void** stream) {
  *stream = nullptr;
  return 0;
}
