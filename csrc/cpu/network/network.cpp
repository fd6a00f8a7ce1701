#include "cpu/network/network.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/base/bf16.h"
#include "cpu/base/parallel.h"
#include "cpu/direct/direct.h"
#include "cpu/stem/amx_stem.h"
#include "cpu/stem/stem.h"
#include "cpu/winograd/winograd.h"

namespace resnet_fused::cpu {
namespace {

[[noreturn]] void refuse(int64_t step, const std::string& what) {
  throw std::runtime_error("frozen_network: step " + std::to_string(step) + " " + what);
}

DirectShape direct_shape(const Step& s, bool bf16) {
  const DirectFormat format = s.kind == StepKind::amx ? (bf16 ? DirectFormat::amx_bf16 : DirectFormat::amx_f32)
                                                      : (bf16 ? DirectFormat::bf16 : DirectFormat::f32);
  return {s.convolution(), format};
}
StemShape stem_shape(const Step& s) { return {s.convolution()}; }
AmxStemShape amx_stem_shape(const Step& s, bool bf16) { return {stem_shape(s), bf16 ? 1 : 3}; }
WinogradShape winograd_shape(const Step& s, bool bf16) {
  return {s.convolution(), static_cast<int>(s.m), bf16 ? DType::bf16 : DType::f32};
}
WinogradWeights weights_of(const Step& s, bool bf16) {
  return s.taps && !bf16 ? WinogradWeights::taps : WinogradWeights::points;
}

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
    default:
      return 0;
  }
}

// Number of values.
int64_t read_by(const Step& s) { return s.n * s.h * s.w * s.c; }
int64_t written_by(const Step& s) {
  switch (s.kind) {
    case StepKind::copy:
      return s.n * s.h * s.w * s.c;
    case StepKind::stem:
    case StepKind::amx_stem:
      return s.n * stem_shape(s).pooled_h() * stem_shape(s).pooled_w() * s.k;
    case StepKind::mean:
      return s.n * s.c;
    default:
      return s.n * s.convolution().p * s.convolution().q * s.k;
  }
}

// Bytes of the packed weights, and number of values of the shift.
int64_t weights_size(const Step& s, bool bf16) {
  switch (s.kind) {
    case StepKind::stem:
      return stem_packed_size(s.k, s.c, s.kernel_h) * 4;
    case StepKind::amx_stem:
      return amx_stem_packed_size(amx_stem_shape(s, bf16)) * 2;
    case StepKind::direct:
    case StepKind::amx:
      return direct_packed_size(direct_shape(s, bf16)) * 2;
    case StepKind::winograd:
      return winograd_packed_size(winograd_shape(s, bf16), weights_of(s, bf16)) * 4;
    default:
      return 0;
  }
}
int64_t shift_size(const Step& s) { return s.kind == StepKind::amx_stem ? (s.k + 31) / 32 * 32 : s.k; }

// Whether the products of sizes, and the kernels' products of them, fit into 64 bits.
bool is_small(const Step& s) {
  constexpr int64_t kSide = int64_t{1} << 31;
  constexpr double kValues = static_cast<double>(int64_t{1} << 47);
  for (const int64_t side : {s.n, s.h, s.w, s.c, s.k, s.kernel_h, s.kernel_w, s.stride, s.padding, s.dilation}) {
    if (side > kSide) return false;
  }
  const auto product = [](auto... sizes) { return (1.0 * ... * static_cast<double>(sizes)); };
  return product(s.n, s.h + 2 * s.padding, s.w + 2 * s.padding, std::max(s.c, s.k)) <= kValues &&
         product(s.k, s.c, s.kernel_h, s.kernel_w) <= kValues;
}

constexpr int64_t kNoActivation = static_cast<int64_t>(Activation::none),
                  kRelu = static_cast<int64_t>(Activation::relu);

// Checks that no number to divide by is 0, and that each step's kernel can run the step.
void check_sizes(const Network& network) {
  for (int64_t i = 0; i < network.count; ++i) {
    const Step& s = network.steps[i];
    if (s.kind < StepKind::copy || s.kind >= StepKind::count) refuse(i, "is of no known kind");
    if (s.n <= 0 || s.c <= 0 || s.h <= 0 || s.w <= 0 || s.k <= 0 || s.kernel_h <= 0 || s.kernel_w <= 0 ||
        s.stride <= 0 || s.padding < 0 || s.dilation <= 0) {
      refuse(i, "has a size that is not positive");
    }
    if (!is_small(s)) refuse(i, "is too large");
    if (s.h + 2 * s.padding <= (s.kernel_h - 1) * s.dilation || s.w + 2 * s.padding <= (s.kernel_w - 1) * s.dilation) {
      refuse(i, "has no output pixel");
    }
    const bool stem = s.kind == StepKind::stem || s.kind == StepKind::amx_stem;
    if (s.activation != kRelu && (stem || s.activation != kNoActivation)) {
      refuse(i, "has activation " + std::to_string(s.activation) + ", but its kernels have " +
                    (stem ? "1 (relu)" : "0 (none), 1 (relu)"));
    }
    if (s.kind == StepKind::pad && (s.k < s.c || s.kernel_h != 1 || s.kernel_w != 1 || s.padding != 0)) {
      refuse(i, "is no zero padding of channels");
    }
    if (s.kind == StepKind::winograd && ((s.m != 2 && s.m != 4) || s.padding > 1 || s.stride != 1 || s.dilation != 1 ||
                                         s.kernel_h != 3 || s.kernel_w != 3)) {
      refuse(i, "is no convolution for Winograd");
    }
    if (s.kind == StepKind::stem &&
        (s.kernel_h > kStemKernel || s.kernel_h != s.kernel_w || s.padding >= s.kernel_h || s.dilation != 1)) {
      refuse(i, "is no stem");
    }
    if (s.kind == StepKind::amx_stem && (s.c > kAmxStemChannels || s.kernel_h > kAmxStemWidth ||
                                         s.kernel_h != s.kernel_w || s.padding >= s.kernel_h || s.dilation != 1)) {
      refuse(i, "is no stem for the matrix unit");
    }
  }
}

void check_places(const Network& network, const NetworkInput& x, int64_t activations, int64_t out_size) {
  const int64_t item = network.bf16 ? 2 : 4;
  for (int64_t i = 0; i < network.count; ++i) {
    const Step& s = network.steps[i];
    const auto inside = [](int64_t place, int64_t bytes, int64_t size) { return place >= 0 && place <= size - bytes; };
    const bool reads_x = s.kind == StepKind::copy || s.kind == StepKind::stem || s.kind == StepKind::amx_stem;
    if (reads_x) {
      if (s.from != kInput || s.first < 0 || s.first > x.sizes[0] - s.n || x.sizes[1] != s.c || x.sizes[2] != s.h ||
          x.sizes[3] != s.w) {
        refuse(i, "reads an input of another shape");
      }
    } else if (!inside(s.from, read_by(s) * item, activations)) {
      refuse(i, "reads outside of the arena");
    }
    const int64_t written = written_by(s) * item;
    if (s.to == kOutput ? written != out_size : !inside(s.to, written, activations)) {
      refuse(i, "writes outside of the arena or the output");
    }
    if (s.residual != kNone && !inside(s.residual, written, activations))
      refuse(i, "adds what is outside of the arena");
    if (s.to == s.from) refuse(i, "writes over what it reads");
    const bool has_weights = weights_size(s, network.bf16) > 0;
    if (has_weights && (!inside(s.weight, weights_size(s, network.bf16), network.constants_size) ||
                        !inside(s.shift, shift_size(s) * 4, network.constants_size) || s.weight % 64 || s.shift % 64)) {
      refuse(i, "has weights outside of the constants");
    }
  }
}

template <class From>
float value_of(From value) {
  if constexpr (sizeof(From) == 2) {
    return float_of(value);
  } else {
    return value;
  }
}
template <class To>
To from_value(float value) {
  if constexpr (sizeof(To) == 2) {
    return bf16_of(value);
  } else {
    return value;
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
Loop mean(const Step& s, const T* from, T* to) {
  constexpr int64_t kChannels = 64;
  const int64_t pieces = (s.c + kChannels - 1) / kChannels;
  return ranges(s.n * pieces, num_threads(), [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t c = i % pieces * kChannels, channels = std::min(kChannels, s.c - c);
      const T* pixel = from + i / pieces * s.h * s.w * s.c + c;
      float sums[kChannels] = {};
      for (int64_t p = 0; p < s.h * s.w; ++p, pixel += s.c) {
        for (int64_t lane = 0; lane < channels; ++lane) sums[lane] += value_of(pixel[lane]);
      }
      T* out = to + i / pieces * s.c + c;
      for (int64_t lane = 0; lane < channels; ++lane) {
        out[lane] = from_value<T>(sums[lane] / static_cast<float>(s.h * s.w));
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
  const char* from = s.from == kInput ? nullptr : arena + s.from;
  const char* residual = s.residual == kNone ? nullptr : arena + s.residual;
  const char* weight = network.constants + s.weight;
  const auto* shift = reinterpret_cast<const float*>(network.constants + s.shift);
  const FoldedEpilogue epilogue{shift, residual, static_cast<Activation>(s.activation)};
  const void* input = static_cast<const char*>(x.data) + s.first * x.strides[0] * (x.bf16 ? 2 : 4);
  switch (s.kind) {
    case StepKind::copy:
      loops.push_back(x.bf16 ? copy_input(s, static_cast<const uint16_t*>(input), x.strides, static_cast<T*>(to))
                             : copy_input(s, static_cast<const float*>(input), x.strides, static_cast<T*>(to)));
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
      loops.push_back(mean(s, reinterpret_cast<const T*>(from), static_cast<T*>(to)));
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
