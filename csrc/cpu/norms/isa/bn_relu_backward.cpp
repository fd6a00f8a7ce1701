#include <type_traits>

#include "cpu/base/runs.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {
namespace {

constexpr int kRows = 32;  // channels_last: rows summed in float before they are added in double
// vectors summed at the same time: whole cache lines of neighbouring channels, in memory order
constexpr int kGroup = 4;

// The inputs of g. grad2 may be absent. `out` is not read without relu.
template <class T>
struct Gradient {
  const T *grad, *grad2, *out;
};

// g of n <= kWidth values from `at` on.
template <bool kRelu, class T>
Vec masked_grad(const Gradient<T>& from, int64_t at, int n) {
  const auto read = [&](const T* p) { return n == kWidth ? load(p + at) : load(p + at, n); };
  Vec g = read(from.grad);
  if (from.grad2) {
    g += read(from.grad2);
    if constexpr (!std::is_same_v<T, float>) {  // rounded as it is stored and as the next pass reads it
      T sum[kWidth];
      store(sum, g);
      g = load(sum);
    }
  }
  return kRelu ? relu_gradient(g, read(from.out)) : g;
}

template <class T>
void put(T* to, Vec value, int n) {
  n == kWidth ? store(to, value) : store(to, value, n);
}

// Adds the sums over `rows` rows of kVecs vectors of channels. The last vector has `lanes` valid lanes.
template <int kVecs, bool kRelu, bool kX, class T>
void strip_block(const Gradient<T>& from, const T* x, T* to, int64_t at, int64_t stride, int rows, int lanes,
                 const float* mean, double* sum_g, double* sum_gx) {
  Vec g_sum[kVecs] = {}, gx_sum[kVecs] = {};
  for (int row = 0; row < rows; ++row) {
    for (int v = 0; v < kVecs; ++v) {
      const int n = v == kVecs - 1 ? lanes : kWidth;
      const int64_t i = at + row * stride + v * kWidth;
      const Vec g = masked_grad<kRelu>(from, i, n);
      if (to) put(to + i, g, n);
      g_sum[v] += g;
      if (kX) gx_sum[v] += g * ((n == kWidth ? load(x + i) : load(x + i, n)) - load(mean + v * kWidth));
    }
  }
  for (int v = 0; v < kVecs; ++v) {
    float g_lanes[kWidth], gx_lanes[kWidth];
    store(g_lanes, g_sum[v]), store(gx_lanes, gx_sum[v]);
    for (int i = 0; i < (v == kVecs - 1 ? lanes : kWidth); ++i) {
      sum_g[v * kWidth + i] += g_lanes[i];
      if (kX) sum_gx[v * kWidth + i] += gx_lanes[i];
    }
  }
}

template <bool kRelu, bool kX, class T>
void sums(Layout layout, const Gradient<T>& from, const T* x, T* to, const Norm& norm, const Partition& cut,
          double* g_parts, double* gx_parts) {
  const int64_t channels = layout.channels;
  const auto strip_task = [&](int64_t chunk, int64_t first, int n) {
    alignas(64) float mean[kStrip] = {};
    if (kX) gather_mean(norm, first, n, mean);
    double *sum_g = g_parts + chunk * channels + first, *sum_gx = gx_parts + chunk * channels + first;
    for (int i = 0; i < n; ++i) sum_g[i] = sum_gx[i] = 0;
    for (int64_t row = cut.begin(chunk); row < cut.end(chunk); row += kRows) {
      const int rows = static_cast<int>(std::min<int64_t>(kRows, cut.end(chunk) - row));
      int i = 0;
      const auto step = [&](auto vecs, int lanes) {
        const int64_t at = row * channels + first + i;
        strip_block<vecs, kRelu, kX>(from, x, to, at, channels, rows, lanes, mean + i, sum_g + i, sum_gx + i);
      };
      for (; i + kGroup * kWidth <= n; i += kGroup * kWidth) step(std::integral_constant<int, kGroup>{}, kWidth);
      for (; i < n; i += kWidth) step(std::integral_constant<int, 1>{}, std::min(kWidth, n - i));
    }
  };
  const auto channel_task = [&](int64_t chunk, int64_t c) {
    float mean = 0;
    if (kX) gather_mean(norm, c, 1, &mean);
    double sum_g = 0, sum_gx = 0;
    for (int64_t unit = cut.begin(chunk); unit < cut.end(chunk); ++unit) {
      const int64_t at = cut.offset(unit, c), n = cut.length(unit);
      Vec g_sum = {}, gx_sum = {};
      for (int64_t i = 0; i < n; i += kWidth) {
        const int lanes = static_cast<int>(std::min<int64_t>(kWidth, n - i));
        const Vec g = masked_grad<kRelu>(from, at + i, lanes);
        if (to) put(to + at + i, g, lanes);
        g_sum += g;
        if (kX) gx_sum += g * ((lanes == kWidth ? load(x + at + i) : load(x + at + i, lanes)) - mean);
      }
      for (int i = 0; i < kWidth; ++i) sum_g += g_sum[i], sum_gx += gx_sum[i];
    }
    g_parts[chunk * channels + c] = sum_g;
    gx_parts[chunk * channels + c] = sum_gx;
  };
  for_each_chunk(cut, strip_task, channel_task);
}

enum { kMean, kScale, kOffset, kSlope, kCount };

// grad_x = scale * g - offset - slope * (x - mean). kX: batch statistics; without kX the last two terms are absent.
template <bool kRelu, bool kX, class T>
void apply(Layout layout, const Gradient<T>& from, const T* x, const Norm& norm, const float* sum_g,
           const float* sum_gx, T* grad_x, T* grad_residual) {
  const double inverse = 1.0 / static_cast<double>(layout.count());
  const auto fill = [&](Strip<kCount>& strip, int64_t first, int n) {
    float invstd[kStrip];
    gather_invstd(norm, first, n, invstd);
    gather(norm.weight, first, n, 1, strip.values[kScale]);
    if (kX) gather_mean(norm, first, n, strip.values[kMean]);
    for (int i = 0; i < n; ++i) {
      const double scale = static_cast<double>(strip.values[kScale][i]) * invstd[i];
      strip.values[kScale][i] = static_cast<float>(scale);
      if (kX) strip.values[kOffset][i] = static_cast<float>(scale * sum_g[first + i] * inverse);
      if (kX) strip.values[kSlope][i] = static_cast<float>(scale * invstd[i] * sum_gx[first + i] * inverse);
    }
  };
  for_each_run<kCount>(layout, fill, [&](const auto& constants, int64_t offset, int64_t n) {
    const auto step = [&](int64_t i, int lanes) {
      const int64_t at = offset + i;
      const Vec g = masked_grad<kRelu>(from, at, lanes);
      if (grad_residual) put(grad_residual + at, g, lanes);
      if (!grad_x) return;
      Vec dx = g * constants(kScale, i);
      if (kX) {
        const Vec centred = (lanes == kWidth ? load(x + at) : load(x + at, lanes)) - constants(kMean, i);
        dx = dx - constants(kOffset, i) - centred * constants(kSlope, i);
      }
      put(grad_x + at, dx, lanes);
    };
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) step(i, kWidth);
    if (i < n) step(i, static_cast<int>(n - i));
  });
}

template <class T>
Gradient<T> gradient(const void* grad, const void* grad2, const void* out) {
  return {static_cast<const T*>(grad), static_cast<const T*>(grad2), static_cast<const T*>(out)};
}

// f(relu, x) with both known at compile time.
template <class F>
void with_flags(bool relu, bool x, const F& f) {
  using std::false_type, std::true_type;
  relu ? (x ? f(true_type{}, true_type{}) : f(true_type{}, false_type{}))
       : (x ? f(false_type{}, true_type{}) : f(false_type{}, false_type{}));
}

}  // namespace

size_t bn_relu_backward_reduce_scratch(Layout layout) {
  return static_cast<size_t>(Partition(layout).chunks * layout.channels) * 2 * sizeof(double);
}

void bn_relu_backward_reduce(Layout layout, const void* grad, const void* grad2, const void* x, const void* out,
                             Norm norm, float* sum_g, float* sum_gx, void* masked, Activation activation, void* scratch,
                             void*) {
  const Partition cut(layout);
  const int64_t channels = layout.channels;
  double *g_parts = static_cast<double*>(scratch), *gx_parts = g_parts + cut.chunks * channels;
  dispatch(layout.dtype, [&](auto type) {
    using T = decltype(type);
    with_flags(activation == Activation::relu, x != nullptr, [&](auto kRelu, auto kX) {
      sums<kRelu, kX>(layout, gradient<T>(grad, grad2, out), static_cast<const T*>(x), static_cast<T*>(masked), norm,
                      cut, g_parts, gx_parts);
    });
  });
  parallel_for(channels, ceil_div(kGrain, cut.chunks), [&](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += kStrip) {
      const int n = static_cast<int>(std::min<int64_t>(kStrip, end - first));
      double g[kStrip] = {}, gx[kStrip] = {};
      for (int64_t chunk = 0; chunk < cut.chunks; ++chunk) {
        const int64_t part = chunk * channels + first;
        for (int i = 0; i < n; ++i) g[i] += g_parts[part + i], gx[i] += gx_parts[part + i];
      }
      float invstd[kStrip];
      if (x) gather_invstd(norm, first, n, invstd);
      for (int i = 0; i < n; ++i) {
        sum_g[first + i] = static_cast<float>(g[i]);
        if (x) sum_gx[first + i] = static_cast<float>(gx[i] * invstd[i]);
      }
    }
  });
}

void bn_relu_backward_apply(Layout layout, const void* grad, const void* grad2, const void* x, const void* out,
                            Norm norm, const float* sum_g, const float* sum_gx, void* grad_x, void* grad_residual,
                            Activation activation, void*) {
  dispatch(layout.dtype, [&](auto type) {
    using T = decltype(type);
    with_flags(activation == Activation::relu, !norm.has_var && grad_x, [&](auto kRelu, auto kX) {
      apply<kRelu, kX>(layout, gradient<T>(grad, grad2, out), static_cast<const T*>(x), norm, sum_g, sum_gx,
                       static_cast<T*>(grad_x), static_cast<T*>(grad_residual));
    });
  });
}

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
