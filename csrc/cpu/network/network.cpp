#include "cpu/network/network.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "cpu/base/parallel.h"
#include "cpu/network/check.h"
#include "cpu/network/shapes.h"
#include "cpu/network/values.h"

namespace resnet_fused::cpu {
namespace {

int64_t workspace_of(const Step& s, bool bf16) {
  switch (s.kind) {
    case StepKind::stem:
      return stem_workspace_size(stem_shape(s), num_threads()) * 4;
    case StepKind::amx_stem:
      return amx_stem_workspace_size(amx_stem_shape(s, bf16), num_threads());
    case StepKind::direct:
    case StepKind::amx:
      return direct_workspace_size(direct_plan(direct_shape(s, bf16), num_threads())) * 2;
    case StepKind::winograd:
      return winograd_workspace_size(winograd_plan(winograd_shape(s, bf16), weights_of(s, bf16), num_threads())) * 4;
    case StepKind::grouped:
      return grouped_workspace_size(grouped_shape(s, bf16), num_threads());
    default:
      return 0;
  }
}

template <class From, class To>
Loop copy_input(const Step& s, const From* x, const int64_t (&sides)[4], To* to) {
  const auto strides = std::to_array(sides);
  return ranges(s.n * s.h, num_threads(), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const From* from = x + row / s.h * strides[0] + row % s.h * strides[2];
      To* out = to + row * s.w * s.c;
      for (int64_t c = 0; c < s.c; ++c) {
        for (int64_t i = 0; i < s.w; ++i) {
          out[i * s.c + c] = from_value<To>(value_of(from[c * strides[1] + i * strides[3]]));
        }
      }
    }
  });
}

template <class T>
Loop pad(const Step& s, const T* from, T* to) {
  const int64_t height = s.convolution().p, width = s.convolution().q;
  return ranges(s.n * height, num_threads(), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const T* pixel = from + (row / height * s.h + row % height * s.stride) * s.w * s.c;
      for (int64_t x = 0; x < width; ++x) {
        T* out = to + (row * width + x) * s.k;
        std::memcpy(out, pixel + x * s.stride * s.c, s.c * sizeof(T));
        std::memset(out + s.c, 0, (s.k - s.c) * sizeof(T));
      }
    }
  });
}

template <class T>
void add_step(const Step& s, const Network& network, const NetworkInput& x, char* arena, char* workspace, void* out,
              Loops& loops) {
  const int slots = num_threads();
  const bool bf16 = network.bf16;
  void* to = s.to == kOutput ? out : arena + s.to;
  const char* weight = network.constants + s.weight;
  const auto* shift = reinterpret_cast<const float*>(network.constants + s.shift);
  const char* input = static_cast<const char*>(x.data) + s.first * x.strides[0] * (x.bf16 ? 2 : 4);
  const char* from = s.from == kInput ? input : arena + s.from;
  const char* residual = s.residual == kNone ? nullptr : s.residual == kInput ? input : arena + s.residual;
  const auto function = static_cast<Pointwise>(s.activation);
  const FoldedEpilogue epilogue{shift, residual, function};
  switch (s.kind) {
    case StepKind::copy:
      loops.push_back(x.bf16 ? copy_input(s, reinterpret_cast<const uint16_t*>(input), x.strides, static_cast<T*>(to))
                             : copy_input(s, reinterpret_cast<const float*>(input), x.strides, static_cast<T*>(to)));
      return;
    case StepKind::stem:
      return stem_loops(stem_shape(s), input, x.bf16, x.strides, reinterpret_cast<const float*>(weight), shift, to,
                        bf16, slots, reinterpret_cast<float*>(workspace), loops);
    case StepKind::amx_stem:
      return amx_stem_loops(amx_stem_shape(s, bf16), input, x.bf16, x.strides,
                            reinterpret_cast<const uint16_t*>(weight), shift, to, slots, workspace, loops);
    case StepKind::direct:
    case StepKind::amx:
      return direct_loops(direct_plan(direct_shape(s, bf16), slots), from, reinterpret_cast<const uint16_t*>(weight),
                          epilogue, to, reinterpret_cast<uint16_t*>(workspace), loops);
    case StepKind::winograd:
      return winograd_loops(winograd_plan(winograd_shape(s, bf16), weights_of(s, bf16), slots), from,
                            reinterpret_cast<const float*>(weight), nullptr, epilogue, to,
                            reinterpret_cast<float*>(workspace), nullptr, loops);
    case StepKind::pad:
      loops.push_back(pad(s, reinterpret_cast<const T*>(from), static_cast<T*>(to)));
      return;
    case StepKind::mean:
      loops.push_back(map_mean({s.n, s.h, s.w, s.c}, bf16, from, to, slots));
      return;
    case StepKind::depthwise:
      loops.push_back(depthwise_loop(depthwise_shape(s, bf16), from, reinterpret_cast<const float*>(weight), shift,
                                     function, to, slots));
      return;
    case StepKind::grouped:
      loops.push_back(grouped_loop(grouped_shape(s, bf16), from, weight, shift, function, to, workspace, slots));
      return;
    case StepKind::gate:
      loops.push_back(
          map_gate({s.n, s.h, s.w, s.c}, bf16, from, arena + s.gate, residual, function == Pointwise::relu, to, slots));
      return;
    case StepKind::max_pool:
      loops.push_back(map_max_pool(pool_shape(s), bf16, from, to, slots));
      return;
    case StepKind::count:
      return;
  }
}

}  // namespace

int64_t network_workspace(const Network& network) {
  check_sizes(network);
  int64_t most = 0;
  for (int64_t i = 0; i < network.count; ++i) most = std::max(most, workspace_of(network.steps[i], network.bf16));
  return most;
}

void network_run(const Network& network, const NetworkInput& x, char* arena, int64_t activations, char* workspace,
                 void* out, int64_t out_size) {
  check_sizes(network);
  check_places(network, x, activations, out_size);
  Loops loops;
  const auto add = network.bf16 ? add_step<uint16_t> : add_step<float>;
  for (int64_t i = 0; i < network.count; ++i) add(network.steps[i], network, x, arena, workspace, out, loops);
  run_loops(loops, num_threads());
}

}  // namespace resnet_fused::cpu
