// Launches of add_relu: 16-byte accesses where the three pointers are aligned to 16 bytes, otherwise single elements.
#include "cuda/base/launch.h"
#include "cuda/norms/add_relu.cuh"

namespace resnet_fused::cuda {

namespace {

// Sixteen blocks of 256 threads per multiprocessor are two full waves. Fewer blocks would lengthen the last wave, more
// blocks would leave a thread less work.
constexpr int kBlocksPerMultiprocessor = 16;

template <class F, class T, int N>
void launch_map(const char* op, const void* a, const void* b, void* out, int64_t size, void* stream) {
  const int64_t needed = ceil_divide(ceil_divide(size, N), kMapThreads * kMapUnroll);
  const int64_t most = static_cast<int64_t>(multiprocessors(op)) * kBlocksPerMultiprocessor;
  launch(op, map_kernel<F, T, N>, {needed < most ? needed : most}, kMapThreads, 0, stream, static_cast<const T*>(a),
         static_cast<const T*>(b), static_cast<T*>(out), size);
}

template <class F>
void map(const char* op, DType dtype, const void* a, const void* b, void* out, int64_t size, void* stream) {
  with_type(dtype, [&](auto element) {
    using T = decltype(element);
    if (aligned(a, 16) && aligned(b, 16) && aligned(out, 16)) {
      launch_map<F, T, 16 / sizeof(T)>(op, a, b, out, size, stream);
    } else {
      launch_map<F, T, 1>(op, a, b, out, size, stream);
    }
  });
}

}  // namespace

void add_relu(DType dtype, const void* x, const void* residual, void* out, int64_t size, void* stream) {
  map<AddRelu>("add_relu", dtype, x, residual, out, size, stream);
}

void add_relu_backward(DType dtype, const void* grad, const void* out, void* grad_in, int64_t size, void* stream) {
  map<Mask>("add_relu_backward", dtype, grad, out, grad_in, size, stream);
}

}  // namespace resnet_fused::cuda
