#include "cpu/network/check.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cpu/network/shapes.h"

namespace resnet_fused::cpu {
namespace {

[[noreturn]] void refuse(int64_t step, const std::string& what) {
  throw std::runtime_error("frozen_network: step " + std::to_string(step) + " " + what);
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
    case StepKind::depthwise:
      return s.kernel_h * s.kernel_w * s.c * 4;
    case StepKind::grouped:
      return grouped_packed_size(grouped_shape(s, bf16)) * (bf16 ? 2 : 4);
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

}  // namespace

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
    const bool depthwise = s.kind == StepKind::depthwise, pool = s.kind == StepKind::max_pool;
    const bool grouped = s.kind == StepKind::grouped;
    if ((depthwise || grouped || pool || s.kind == StepKind::gate) &&
        (s.c != s.k || s.kernel_h != s.kernel_w || s.dilation != 1)) {
      refuse(i, "does not keep its channels, or has a kernel that is not square");
    }
    if (s.kind == StepKind::gate && (s.kernel_h != 1 || s.stride != 1 || s.padding != 0)) refuse(i, "is no gate");
    if (depthwise && (!depthwise_is_able(s.kernel_h, s.stride) || s.residual != kNone)) refuse(i, "is not depthwise");
    if (grouped && (s.kernel_h != 3 || !grouped_is_able(s.c, s.width, s.stride) || s.residual != kNone)) {
      refuse(i, "is no grouped convolution with a kernel");
    }
    if (pool && (2 * s.padding > s.kernel_h || s.residual != kNone)) refuse(i, "is no pool");
    const bool stem = s.kind == StepKind::stem || s.kind == StepKind::amx_stem;
    const bool any = depthwise || grouped || s.kind == StepKind::direct || s.kind == StepKind::amx;
    if (any ? !is_pointwise(s.activation) : s.activation != kRelu && (stem || s.activation != kNoActivation)) {
      refuse(i, "has activation " + std::to_string(s.activation) + ", but its kernels have " +
                    (stem  ? "1 (relu)"
                     : any ? "0 to 6"
                           : "0 (none), 1 (relu)"));
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
    const bool any_layout = s.kind == StepKind::copy || s.kind == StepKind::stem || s.kind == StepKind::amx_stem;
    if (any_layout || (s.from == kInput && x.is_nhwc(network.bf16))) {
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
    const bool adds_x = s.residual == kInput && x.is_nhwc(network.bf16) && s.first >= 0 &&
                        s.first <= x.sizes[0] - s.n && written == s.n * x.sizes[1] * x.sizes[2] * x.sizes[3] * item;
    if (s.residual != kNone && !adds_x && !inside(s.residual, written, activations)) {
      refuse(i, "adds what is outside of the arena");
    }
    if (s.kind == StepKind::gate && !inside(s.gate, s.n * s.c * item, activations)) {
      refuse(i, "has a gate outside of the arena");
    }
    if ((s.kind == StepKind::gate) && (s.to == s.residual || s.to == s.gate)) refuse(i, "writes over what it reads");
    if (s.to == s.from) refuse(i, "writes over what it reads");
    const bool has_weights = weights_size(s, network.bf16) > 0;
    if (has_weights && (!inside(s.weight, weights_size(s, network.bf16), network.constants_size) ||
                        !inside(s.shift, shift_size(s) * 4, network.constants_size) || s.weight % 64 || s.shift % 64)) {
      refuse(i, "has weights outside of the constants");
    }
  }
}

}  // namespace resnet_fused::cpu
