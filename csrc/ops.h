// The contract between csrc/register/ (checks, tensors) and the launchers (plain pointers).
//
// Every launcher exists twice with the same arguments: in `cpu::` (csrc/cpu/norms/isa/<op>.cpp) and in `cuda::`
// (csrc/cuda/norms/<op>.cu, which g++ also compiles for the emulator in tests/emulator). A launcher allocates nothing,
// checks nothing that csrc/register/ has checked, and never includes a torch header. resnet_fused/ops/<op>.py says what
// each computes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace resnet_fused {

enum class DType : int { f32, f16, bf16 };

// A dense activation viewed as [outer, channels, inner]. Element (o, c, i) lies at (o * channels + c) * inner + i.
// channels_last: outer = N*H*W, inner = 1.  Contiguous NCHW: outer = N, inner = H*W.
struct Layout {
  DType dtype;
  int64_t outer, channels, inner;
  int64_t count() const { return outer * inner; }  // values per channel
  int64_t size() const { return outer * channels * inner; }
};

// A per-channel parameter or buffer [channels]. data == nullptr: absent (weight 1, bias 0, no running statistics).
struct Channels {
  const void* data;
  DType dtype;
};
struct MutableChannels {
  void* data;
  DType dtype;
};

// Normalisation of one channel: xhat = (x - mean) * invstd.
// has_var = false (training): `mean` and `var_or_invstd` are the float32 batch statistics that bn_stats wrote, and
// invstd = var_or_invstd. has_var = true (evaluation, frozen): they are running_mean and running_var, and
// invstd = 1 / sqrt(var_or_invstd + eps).
struct Norm {
  Channels mean, var_or_invstd;
  bool has_var;
  double eps;
  Channels weight, bias;
};

// The activation that is applied to a result before it is rounded. The numbers are those of the schemas' `int
// activation`.
enum class Activation : int { none, relu };

// The steps after the sums of a layer: out = activation(norm(sum) [+ residual]). residual may be nullptr.
struct Epilogue {
  Norm norm;
  const void* residual;
  Activation activation;
};

// Output pixels of a convolution along one axis, as torch counts them.
constexpr int64_t out_size(int64_t in, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  return (in + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
}
// Output size of the max-pool of a ResNet's stem: 3x3, stride 2, padding 1.
constexpr int64_t pooled_size(int64_t in) { return out_size(in, 3, 2, 1, 1); }

// NHWC activations, KRSC weights. c, k: channels per group; x has c * groups channels, out is [n, p, q, k * groups]. p
// and q are computed from the other numbers, which must not change afterwards.
struct Convolution {
  int64_t n, h, w, c, k, r, s, groups = 1;
  int64_t stride_h = 1, stride_w = 1, pad_h = 0, pad_w = 0, dilation_h = 1, dilation_w = 1;
  int64_t p = out_size(h, r, stride_h, pad_h, dilation_h), q = out_size(w, s, stride_w, pad_w, dilation_w);
};

// How a CUDA convolution divides its work: the name of a tile, and the number of slices of its reduction
// (cuda/conv/choice.h). "auto" and 0 mean the choice with the best prediction for the shape. cluster: the slices run in
// one launch, from compute capability 9.0 on. early_weights, for a cluster only: the kernel right ahead in the stream
// does not write the weight.
struct ConvChoice {
  std::string_view tile = "auto";
  int64_t splits = 0;
  bool cluster = false, early_weights = false;
};

// `stream` is a cudaStream_t; the CPU launchers ignore it. `scratch` has at least <op>_scratch(...) bytes, aligned to
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
  /* Merges the batch statistics of processes. parts [world, 2 * channels + 1]: mean, unbiased variance and number of \
     values per channel of each process; the number may be 0. share = count of this process / sum of all counts. */   \
  void bn_stats_merge(int64_t world, int64_t channels, const float* parts, double count, double eps, float* mean,     \
                      float* invstd, float* var, float* share, void* stream);                                         \
  /* out = activation(xhat * weight + bias [+ residual]); out may be x or residual. */                                \
  void bn_relu(Layout layout, const void* x, Epilogue epilogue, void* out, void* stream);                             \
  /* out = relu(xhat * weight + bias + zhat * weight_z + bias_z) in one pass: the end of a residual block whose       \
     shortcut is a projection. norm_z normalises z to zhat. out may be x or z. */                                     \
  void bn_add_bn_relu(Layout layout, const void* x, Norm norm, const void* z, Norm norm_z, void* out, void* stream);  \
  /* g = the gradient of the activation at (grad [+ grad2]); the sum is float32 and rounded as if it were stored. For \
     relu g = out <= 0 ? 0 : grad [+ grad2]: the stored output is the mask. Per channel sum_g = sum g and             \
     sum_gx = sum g * xhat, in float32. x == nullptr: sum_g alone. out may be nullptr where activation is none.       \
     masked = g, where masked is not nullptr; masked may be grad or grad2. */                                         \
  size_t bn_relu_backward_reduce_scratch(Layout layout);                                                              \
  void bn_relu_backward_reduce(Layout layout, const void* grad, const void* grad2, const void* x, const void* out,    \
                               Norm norm, float* sum_g, float* sum_gx, void* masked, Activation activation,           \
                               void* scratch, void* stream);                                                          \
  /* grad_residual = g. grad_x = weight * invstd * g (has_var), else                                                  \
     weight * invstd * (g - sum_g / count - xhat * sum_gx / count). Either output may be nullptr; with has_var x,     \
     sum_g, sum_gx may be nullptr. grad_residual may be grad or grad2. */                                             \
  void bn_relu_backward_apply(Layout layout, const void* grad, const void* grad2, const void* x, const void* out,     \
                              Norm norm, const float* sum_g, const float* sum_gx, void* grad_x, void* grad_residual,  \
                              Activation activation, void* stream);

namespace cpu {
RESNET_FUSED_LAUNCHERS
}

namespace cuda {
RESNET_FUSED_LAUNCHERS
// out = activation(bn(conv(x, weight)) [+ residual]), accumulated and normalised in float32 (has_var is true). float32
// uses TF32 tensor cores if allow_tf32, else IEEE FMA. conv_bn_relu_scratch refuses a choice that the shape does not
// allow. Where only the alignment of the pointers does not allow the choice, the automatic choice runs.
size_t conv_bn_relu_scratch(DType dtype, Convolution conv, bool allow_tf32, ConvChoice choice);
void conv_bn_relu(DType dtype, const void* x, const void* weight, Epilogue epilogue, void* out, Convolution conv,
                  bool allow_tf32, ConvChoice choice, void* scratch, void* stream);
// Fills `to` with the choices worth measuring, at most `room` of them, and returns their count. The choices with the
// best predictions come first. most_splits is 1 for conv_stats. clusters: clusters follow at the end, where the device
// has them.
int conv_choices(DType dtype, Convolution conv, bool allow_tf32, int most_splits, bool clusters, ConvChoice* to,
                 int room);
// Two convolutions that read one x, without a residual: the first convolution of a block and its projection. They run
// in one launch where that is predicted to be faster. A choice overrules the prediction: the tile "apart" means two
// launches, any other tile means one launch with that tile and those slices.
struct ConvSide {
  const void* weight;
  Epilogue epilogue;  // has no residual
  void* out;
  Convolution conv;
};
size_t conv_bn_relu_pair_scratch(DType dtype, Convolution first, Convolution second, bool allow_tf32,
                                 ConvChoice choice);
void conv_bn_relu_pair(DType dtype, const void* x, const ConvSide& first, const ConvSide& second, bool allow_tf32,
                       ConvChoice choice, void* scratch, void* stream);
// out = conv(x, weight), and the results of bn_stats without another pass: mean and invstd of the stored (rounded)
// values, and updated running statistics. Statistics need finished sums, so the choice has one slice.
size_t conv_stats_scratch(DType dtype, Convolution conv, bool allow_tf32, ConvChoice choice);
void conv_stats(DType dtype, const void* x, const void* weight, void* out, Convolution conv, float* mean, float* invstd,
                MutableChannels running_mean, MutableChannels running_var, const int64_t* num_batches_tracked,
                double momentum, double eps, bool allow_tf32, ConvChoice choice, void* scratch, void* stream);
// max_pool2d(relu(bn(conv(x, weight))), 3, stride 2, padding 1), the stem. The map before the pool is not written. out:
// [n, pooled_size(p), pooled_size(q), k]. The kernel has no other activation than ReLU.
void conv_bn_relu_pool(DType dtype, const void* x, const void* weight, Norm norm, void* out, Convolution conv,
                       bool allow_tf32, void* stream);
// Global average pool and linear layer: out[n, k] = sum over c of mean of x[n, :, c] * weight[k, c], + bias[k]. x is
// [n, pixels, c], weight is [k, c], bias is [k] or nullptr, and all have one dtype. Means and sums are float32, rounded
// once.
void pool_linear(DType dtype, const void* x, const void* weight, const void* bias, void* out, int64_t n, int64_t pixels,
                 int64_t c, int64_t k, void* stream);
}  // namespace cuda

}  // namespace resnet_fused
