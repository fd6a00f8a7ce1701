#include "cpu/base/norm.h"
#include "cpu/base/parallel.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {
namespace {

// Values per task. A task is small enough that the smallest maps of ResNet-34 at batch 1 (25088 values) use two cores.
// It is large enough that waking a thread costs less than the task's work.
constexpr int64_t kGrain = 8192;

// out[i] = f(a[i], b[i])
template <class T, class F>
void map(const void* a, const void* b, void* out, int64_t size, F f) {
  parallel_for(size, kGrain, [=](int64_t begin, int64_t end) {
    const T *pa = static_cast<const T*>(a), *pb = static_cast<const T*>(b);
    T* po = static_cast<T*>(out);
    int64_t i = begin;
    for (; i + kWidth <= end; i += kWidth) store(po + i, f(load(pa + i), load(pb + i)));
    const int rest = static_cast<int>(end - i);
    if (rest > 0) store(po + i, f(load(pa + i, rest), load(pb + i, rest)), rest);
  });
}

}  // namespace

void add_relu(DType dtype, const void* x, const void* residual, void* out, int64_t size, void*) {
  dispatch(dtype, [&](auto type) {
    map<decltype(type)>(x, residual, out, size, [](Vec a, Vec b) { return activate(a + b, Activation::relu); });
  });
}

void add_relu_backward(DType dtype, const void* grad, const void* out, void* grad_in, int64_t size, void*) {
  dispatch(dtype, [&](auto type) {
    map<decltype(type)>(grad, out, grad_in, size, [](Vec grad, Vec out) { return relu_gradient(grad, out); });
  });
}

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
