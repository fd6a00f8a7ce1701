// What the ops for a run of residual blocks in training share (training.cpp, training_backward.cpp).
#pragma once

#include <array>

#include "register/cuda/conv.h"

namespace resnet_fused {

// A convolution and its batch norm: views into the op's lists of arguments.
enum Part { kWeight, kBnWeight, kBnBias, kRunningMean, kRunningVar, kParts };
struct Unit {
  const Tensor* tensors;           // of all units
  std::array<int64_t, kParts> at;  // the places of this unit's tensors among them; -1: absent
  Pair stride, padding, dilation;
  int64_t groups;
  double eps;

  bool has(Part part) const { return at[part] >= 0; }
  const Tensor& weight() const { return tensors[at[kWeight]]; }
  OptionalTensor get(Part part) const { return has(part) ? OptionalTensor(tensors[at[part]]) : std::nullopt; }
  int64_t channels() const { return weight().size(0); }
  bool of_batch() const { return !has(kRunningMean); }
};
struct Block {
  std::vector<Unit> units;  // the projection comes last
  bool projects;
  size_t last() const { return units.size() - 1 - size_t{projects}; }
};

// The blocks of the lists that resnet_fused/ops/training/encoding.py makes.
std::vector<Block> decode(const char* op, const std::vector<Tensor>& tensors, const std::vector<int64_t>& numbers,
                          const std::vector<double>& eps);

// The rows of a unit's statistics, float32 [kRows, channels], as in resnet_fused/ops/training/unit.py.
enum Row { kMean, kInvstd, kVar, kScratch, kRows };
float* row(const Tensor& stats, const Unit& unit, Row which);

// The norm of `unit`; `args` words the messages about its tensors.
Norm norm_of(const Arguments& args, const Unit& unit, const Tensor& stats);

// relu(bn(z) [+ shortcut])
Tensor normalise(const char* op, const Tensor& z, const Unit& unit, const Tensor& stats, const OptionalTensor& shortcut,
                 void* stream);

template <size_t kSize>
void call_torch(const char* name, std::array<StableIValue, kSize>& stack) {
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION));
}

}  // namespace resnet_fused
