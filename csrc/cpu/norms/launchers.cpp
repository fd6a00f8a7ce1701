// The launchers of ops.h for CPUs. Each calls the function that is compiled for the instruction set in use.
#include "cpu/base/isa.h"
#include "ops.h"

namespace resnet_fused::cpu {

RESNET_FUSED_PER_ISA(RESNET_FUSED_LAUNCHERS)

void add_relu(DType dtype, const void* x, const void* residual, void* out, int64_t size, void* stream) {
  RESNET_FUSED_BEST(add_relu)(dtype, x, residual, out, size, stream);
}

void add_relu_backward(DType dtype, const void* grad, const void* out, void* grad_in, int64_t size, void* stream) {
  RESNET_FUSED_BEST(add_relu_backward)(dtype, grad, out, grad_in, size, stream);
}

size_t bn_stats_scratch(Layout layout) { return RESNET_FUSED_BEST(bn_stats_scratch)(layout); }

void bn_stats(Layout layout, const void* x, float* mean, float* invstd, MutableChannels running_mean,
              MutableChannels running_var, const int64_t* num_batches_tracked, double momentum, double eps,
              void* scratch, void* stream) {
  RESNET_FUSED_BEST(bn_stats)
  (layout, x, mean, invstd, running_mean, running_var, num_batches_tracked, momentum, eps, scratch, stream);
}

void bn_stats_merge(int64_t world, int64_t channels, const float* parts, double count, double eps, float* mean,
                    float* invstd, float* var, float* share, void* stream) {
  RESNET_FUSED_BEST(bn_stats_merge)(world, channels, parts, count, eps, mean, invstd, var, share, stream);
}

void bn_relu(Layout layout, const void* x, Epilogue epilogue, void* out, void* stream) {
  RESNET_FUSED_BEST(bn_relu)(layout, x, epilogue, out, stream);
}

void bn_add_bn_relu(Layout layout, const void* x, Norm norm, const void* z, Norm norm_z, void* out, void* stream) {
  RESNET_FUSED_BEST(bn_add_bn_relu)(layout, x, norm, z, norm_z, out, stream);
}

size_t bn_relu_backward_reduce_scratch(Layout layout) {
  return RESNET_FUSED_BEST(bn_relu_backward_reduce_scratch)(layout);
}

void bn_relu_backward_reduce(Layout layout, const void* grad, const void* grad2, const void* x, const void* out,
                             Norm norm, float* sum_g, float* sum_gx, void* masked, Activation activation, void* scratch,
                             void* stream) {
  RESNET_FUSED_BEST(bn_relu_backward_reduce)
  (layout, grad, grad2, x, out, norm, sum_g, sum_gx, masked, activation, scratch, stream);
}

void bn_relu_backward_apply(Layout layout, const void* grad, const void* grad2, const void* x, const void* out,
                            Norm norm, const float* sum_g, const float* sum_gx, void* grad_x, void* grad_residual,
                            Activation activation, void* stream) {
  RESNET_FUSED_BEST(bn_relu_backward_apply)
  (layout, grad, grad2, x, out, norm, sum_g, sum_gx, grad_x, grad_residual, activation, stream);
}

}  // namespace resnet_fused::cpu
