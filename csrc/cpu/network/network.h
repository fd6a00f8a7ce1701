// A frozen network in one call: the steps one after another, in memory that the caller keeps. What a step is and where
// it reads and writes are numbers, made once per shape of the input (resnet_fused/frozen/cpu/one_call.py).
#pragma once

#include <cstdint>

#include "ops.h"

namespace resnet_fused::cpu {

enum class StepKind : int64_t {
  copy,      // the input, in its own layout and dtype, to NHWC of the network's dtype
  stem,      // the input to the pooled map
  amx_stem,  // the same on the matrix unit
  direct,    // convolution
  amx,       // the same on the matrix unit
  winograd,  // F(m x m, 3x3)
  pad,       // every stride-th pixel, zeros for the new channels
  mean,      // of all pixels
  count
};

// As it lies in the list, 20 numbers a step. Places are bytes from the start of the arena; kInput and kOutput are the
// tensors outside of it.
struct Step {
  StepKind kind;
  int64_t from, residual, to;  // residual: kNone or a place, which may be `to`
  int64_t weight, shift;       // bytes from the start of the constants
  int64_t n, h, w, c, k, kernel_h, kernel_w, stride, padding, dilation;
  int64_t activation;  // an Activation; a stem has ReLU and no other
  int64_t m, taps;     // of Winograd
  int64_t first;       // image of the input, where a step reads from it

  Convolution convolution() const {
    return {n, h, w, c, k, kernel_h, kernel_w, 1, stride, stride, padding, padding, dilation, dilation};
  }
};
static_assert(sizeof(Step) == 20 * sizeof(int64_t), "the numbers of a step");
constexpr int64_t kNone = -1, kInput = -2, kOutput = -3;

struct Network {
  const Step* steps;
  int64_t count;
  bool bf16;  // its activations, else float32
  const char* constants;
  int64_t constants_size;
};

// Bytes that the steps need beside the activations, with as many threads as there are now. Throws std::runtime_error
// where a step's sizes make no sense.
int64_t network_workspace(const Network& network);

// Throws std::runtime_error where a step's numbers do not fit: kinds, places, sizes. `activations`: bytes of the arena
// for them. x: element (n, c, y, x) at strides; float32, or bfloat16 if x_bf16.
struct NetworkInput {
  const void* data;
  bool bf16;
  int64_t sizes[4], strides[4];
};
void network_run(const Network& network, const NetworkInput& x, char* arena, int64_t activations, char* workspace,
                 void* out, int64_t out_size);

}  // namespace resnet_fused::cpu
