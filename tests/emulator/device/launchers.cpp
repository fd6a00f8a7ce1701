// The launchers of csrc/ops.h without their kernels: what csrc/register/ checks is checked, and nothing runs.
#include "cuda/hopper/plane/op.h"
#include "cuda/hopper/strip/op.h"
#include "ops.h"

namespace resnet_fused::cuda {

void add_relu(DType, const void*, const void*, void*, int64_t, void*) {}
void add_relu_backward(DType, const void*, const void*, void*, int64_t, void*) {}
size_t bn_stats_scratch(Layout layout) { return 4 * layout.channels * 3; }
void bn_stats(Layout, const void*, float*, float*, MutableChannels, MutableChannels, const int64_t*, double, double,
              void*, void*) {}
void bn_stats_merge(int64_t, int64_t, const float*, double, double, float*, float*, float*, float*, void*) {}
void bn_relu(Layout, const void*, Epilogue, void*, void*) {}
void bn_add_bn_relu(Layout, const void*, Norm, const void*, Norm, void*, void*) {}
size_t bn_relu_backward_reduce_scratch(Layout layout) { return 4 * layout.channels * 2; }
void bn_relu_backward_reduce(Layout, const void*, const void*, const void*, const void*, Norm, float*, float*, void*,
                             Activation, void*, void*) {}
void bn_relu_backward_apply(Layout, const void*, const void*, const void*, const void*, Norm, const float*,
                            const float*, void*, void*, Activation, void*) {}
size_t conv_bn_relu_scratch(DType, Convolution, bool, ConvChoice) { return 0; }
void conv_bn_relu(DType, const void*, const void*, Epilogue, void*, Convolution, bool, ConvChoice, void*, void*) {}
int conv_choices(DType, Convolution, bool, int, bool, ConvChoice* to, int) {
  to[0] = {"128x128", 1};
  to[1] = {"64x64", 1};
  return 2;
}
size_t conv_bn_relu_pair_scratch(DType, Convolution, Convolution, bool, ConvChoice) { return 0; }
void conv_bn_relu_pair(DType, const void*, const ConvSide&, const ConvSide&, bool, ConvChoice, void*, void*) {}
size_t conv_stats_scratch(DType, Convolution conv, bool, ConvChoice) { return 4 * conv.k * 3; }
void conv_stats(DType, const void*, const void*, void*, Convolution, float*, float*, MutableChannels, MutableChannels,
                const int64_t*, double, double, bool, ConvChoice, void*, void*) {}
void conv_bn_relu_pool(DType, const void*, const void*, Norm, void*, Convolution, bool, void*) {}
void pool_linear(DType, const void*, const void*, const void*, void*, int64_t, int64_t, int64_t, int64_t, void*) {}
void conv_plane(DType, const void*, const void*, Epilogue, void*, Convolution, bool, PlaneTable, int, void*) {}
std::vector<int> conv_plane_table(Convolution, bool, int) { return std::vector<int>(8); }
int64_t conv_plane_groups(Convolution, bool, int) { return 1; }
std::string conv_plane_refusal(DType, Convolution, bool) { return ""; }
void conv_strip(DType, const void*, const void*, Epilogue, void*, Convolution, bool, void*) {}
std::string conv_strip_refusal(DType, Convolution) { return ""; }

}  // namespace resnet_fused::cuda
