// A frozen network in one call: the steps run one after another in memory that the caller keeps. A list of numbers
// describes each step, its inputs and its output. resnet_fused/frozen/cpu/one_call.py makes the list once per shape of
// the input.
#pragma once

#include <cstdint>

#include "ops.h"

namespace resnet_fused::cpu {

enum class StepKind : int64_t {
  copy,       // copies the input, in its own layout and dtype, to NHWC of the network's dtype
  stem,       // from the input to the pooled map
  amx_stem,   // a stem on the matrix unit
  direct,     // convolution
  amx,        // a convolution on the matrix unit
  winograd,   // F(m x m, 3x3)
  pad,        // copies every stride-th pixel and adds channels of zeros
  mean,       // mean of all pixels
  depthwise,  // depthwise convolution
  gate,       // [relu](x * gate [+ residual])
  max_pool,
  grouped,  // grouped convolution
  count
};

// A step as it lies in the list, 22 numbers. Places are bytes from the start of the arena. kInput and kOutput are the
// tensors outside of the arena. Each step may read the input where it is NHWC of the network's dtype.
struct Step {
  StepKind kind;
  int64_t from, residual, to;  // residual: kNone or a place, which may be equal to `to`
  int64_t weight, shift;       // bytes from the start of the constants
  int64_t n, h, w, c, k, kernel_h, kernel_w, stride, padding, dilation;
  int64_t activation;  // a Pointwise; a stem has ReLU always
  int64_t m, taps;     // of Winograd: outputs per tile and axis, and whether the weights are taps
  int64_t width;       // of a grouped convolution: channels of a group
  int64_t first;       // first image of the batch, for a step that reads the input
  int64_t gate;        // place of the gate [n, c]

  Convolution convolution() const {
    return {n, h, w, c, k, kernel_h, kernel_w, 1, stride, stride, padding, padding, dilation, dilation};
  }
};
static_assert(sizeof(Step) == 22 * sizeof(int64_t), "the numbers of a step");
constexpr int64_t kNone = -1, kInput = -2, kOutput = -3;

struct Network {
  const Step* steps;
  int64_t count;
  bool bf16;  // whether the activations are bfloat16, else float32
  const char* constants;
  int64_t constants_size;
};

// Bytes of workspace that the steps need, with the current number of threads. Throws std::runtime_error where the sizes
// of a step make no sense.
int64_t network_workspace(const Network& network);

// Throws std::runtime_error where the numbers of a step do not fit: kinds, places, sizes. `activations`: bytes of the
// arena. x: element (n, c, y, x) at strides; bfloat16 if x_bf16, else float32.
struct NetworkInput {
  const void* data;
  bool bf16;
  int64_t sizes[4], strides[4];
  // Whether x lies as the maps of a network in that dtype do.
  bool is_nhwc(bool network_bf16) const {
    return bf16 == network_bf16 && strides[1] == 1 && strides[3] == sizes[1] && strides[2] == sizes[3] * sizes[1] &&
           strides[0] == sizes[2] * strides[2];
  }
};
void network_run(const Network& network, const NetworkInput& x, char* arena, int64_t activations, char* workspace,
                 void* out, int64_t out_size);

}  // namespace resnet_fused::cpu
