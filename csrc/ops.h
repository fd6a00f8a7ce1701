// The contract between csrc/register.cpp (checks, tensors) and the launchers (plain pointers).
//
// Every launcher exists once per world, with the same arguments: `cpu::` (csrc/cpu/<op>.cpp) and `cuda::`
// (csrc/cuda/<op>.cu, also compiled by g++ for the emulator in tests/emulator). A launcher allocates nothing, checks
// nothing that register.cpp has checked, and never sees a torch header. What each computes: resnet_fused/ops/<op>.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace resnet_fused {

enum class DType : int { f32, f16, bf16 };

// A dense activation seen as [outer, channels, inner]; element (o, c, i) lies at (o * channels + c) * inner + i.
// channels_last: outer = N*H*W, inner = 1.  Contiguous NCHW: outer = N, inner = H*W.
struct Layout {
  DType dtype;
  int64_t outer, channels, inner;
  int64_t count() const { return outer * inner; }  // values per channel
  int64_t size() const { return outer * channels * inner; }
};

// A per-channel parameter or buffer [channels]; data == nullptr: absent (weight 1, bias 0, no running statistics).
struct Channels {
  const void* data;
  DType dtype;
};
struct MutableChannels {
  void* data;
  DType dtype;
};

// Normalisation of one channel: xhat = (x - mean) * invstd, invstd = has_var ? 1 / sqrt(spread + eps) : spread.
// has_var = false: `mean` and `spread` are the float32 batch statistics that bn_stats wrote (training);
// has_var = true: they are running_mean and running_var (evaluation, frozen).
struct Norm {
  Channels mean, spread;
  bool has_var;
  double eps;
  Channels weight, bias;
};

// NHWC activations, KRSC weights. c, k: channels per group; x has c * groups of them, out [n, p, q, k * groups].
struct Conv {
  int64_t n, h, w, c, k, r, s, p, q, groups;
  int stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

// `stream` is a cudaStream_t; the CPU launchers ignore it. `scratch` holds at least <op>_scratch(...) bytes, aligned to
// 256.
#define RESNET_FUSED_LAUNCHERS                                                                                        \
  /* out = relu(x + residual); out may be x. grad_in = out <= 0 ? 0 : grad (a NaN in out lets the gradient pass). */  \
  void add_relu(DType dtype, const void* x, const void* residual, void* out, int64_t size, void* stream);             \
  void add_relu_backward(DType dtype, const void* grad, const void* out, void* grad_in, int64_t size, void* stream);  \
  /* Batch mean and 1/sqrt(biased var + eps) in float32; updates the running statistics (unbiased variance) by        \
     factor = num_batches_tracked ? 1 / *num_batches_tracked : momentum. Deterministic: fixed order, no atomics. */   \
  size_t bn_stats_scratch(Layout layout);                                                                             \
  void bn_stats(Layout layout, const void* x, float* mean, float* invstd, MutableChannels running_mean,               \
                MutableChannels running_var, const int64_t* num_batches_tracked, double momentum, double eps,         \
                void* scratch, void* stream);                                                                         \
  /* The same over processes. parts [world, 2 * channels + 1]: of each its mean, its unbiased variance and its number \
     of values per channel, which may be 0. share = count, that of this process, / the number of all. */              \
  void bn_stats_merge(int64_t world, int64_t channels, const float* parts, double count, double eps, float* mean,     \
                      float* invstd, float* var, float* share, void* stream);                                         \
  /* out = [relu](xhat * weight + bias [+ residual]); residual may be nullptr; out may be x or residual. */           \
  void bn_relu(Layout layout, const void* x, Norm norm, const void* residual, void* out, bool relu, void* stream);    \
  /* out = relu(xhat * weight + bias + zhat * weight_z + bias_z), z normalised by norm_z: the end of a residual block \
     whose shortcut is a projection, in one pass. out may be x or z. */                                               \
  void bn_add_bn_relu(Layout layout, const void* x, Norm norm, const void* z, Norm norm_z, void* out, void* stream);  \
  /* g = relu && out <= 0 ? 0 : grad [+ grad2], a sum in float32 that is rounded as if it were stored. sum_g = sum g,  \
     sum_gx = sum g * xhat per channel, float32. x == nullptr: sum_g only. out may be nullptr when !relu. masked = g; \
     it may be absent, and it may be grad or grad2. */                                                                \
  size_t bn_relu_backward_reduce_scratch(Layout layout);                                                              \
  void bn_relu_backward_reduce(Layout layout, const void* grad, const void* grad2, const void* x, const void* out,    \
                               Norm norm, float* sum_g, float* sum_gx, void* masked, bool relu, void* scratch,        \
                               void* stream);                                                                         \
  /* grad_residual = g. grad_x = weight * invstd * g (has_var), else                                                  \
     weight * invstd * (g - sum_g / count - xhat * sum_gx / count). Either output may be nullptr; with has_var x,     \
     sum_g, sum_gx may be nullptr. grad_residual may be grad or grad2. */                                             \
  void bn_relu_backward_apply(Layout layout, const void* grad, const void* grad2, const void* x, const void* out,     \
                              Norm norm, const float* sum_g, const float* sum_gx, void* grad_x, void* grad_residual,  \
                              bool relu, void* stream);

namespace cpu {
RESNET_FUSED_LAUNCHERS
}

namespace cuda {
RESNET_FUSED_LAUNCHERS
// out = [relu](bn(conv(x, weight)) [+ residual]), accumulated and normalised in float32 (has_var is true).
// float32: TF32 tensor cores if allow_tf32, else IEEE FMA.
size_t conv_bn_relu_scratch(DType dtype, Conv conv, bool allow_tf32);
void conv_bn_relu(DType dtype, const void* x, const void* weight, Norm norm, const void* residual, void* out, Conv conv,
                  bool relu, bool allow_tf32, void* scratch, void* stream);
// Two of them that read one x, without a residual: the first convolution of a block and its projection. One launch
// where that is predicted to be faster.
struct ConvSide {
  const void* weight;
  Norm norm;
  void* out;
  Conv conv;
  bool relu;
};
size_t conv_bn_relu_pair_scratch(DType dtype, Conv first, Conv second, bool allow_tf32);
void conv_bn_relu_pair(DType dtype, const void* x, const ConvSide& first, const ConvSide& second, bool allow_tf32,
                       void* scratch, void* stream);
// out = conv(x, weight), and what bn_stats would give for it without another pass: mean and invstd of the stored
// (rounded) values, running statistics updated.
size_t conv_stats_scratch(DType dtype, Conv conv, bool allow_tf32);
void conv_stats(DType dtype, const void* x, const void* weight, void* out, Conv conv, float* mean, float* invstd,
                MutableChannels running_mean, MutableChannels running_var, const int64_t* num_batches_tracked,
                double momentum, double eps, bool allow_tf32, void* scratch, void* stream);
// max_pool2d(relu(bn(conv(x, weight))), 3, stride 2, padding 1) without writing the map before the pool (the stem).
// out: [n, (p - 1) / 2 + 1, (q - 1) / 2 + 1, k].
void conv_bn_relu_pool(DType dtype, const void* x, const void* weight, Norm norm, void* out, Conv conv, bool allow_tf32,
                       void* stream);
}  // namespace cuda

}  // namespace resnet_fused
