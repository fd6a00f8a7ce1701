// Mean and variance in one pass over memory. Blocks fit into the L1 cache and are read twice: first for a pivot near
// their mean, then for sums of deviations from the pivot, which are corrected for the pivot's own error. Blocks, then
// chunks, are merged as (count, mean, sum of squared deviations) in double, in a fixed order.
#include "cpu/base/runs.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {
namespace {

constexpr int kRows = 32;    // channels_last: rows per block
constexpr int kBlock = 512;  // contiguous: values per block, at least (several short planes make a block)
constexpr int kGroup = 4;    // channels_last: vectors whose sums are kept in registers together
// Contiguous: so many sums are kept, and each adds at most kSegment / 64 = 32 values in float.
constexpr int kSums = 64 / kWidth;

// Rounding may leave the m2 of a constant channel below zero, whose root with eps = 0 would be NaN. A NaN stays NaN.
inline double not_negative(double m2) { return m2 < 0 ? 0 : m2; }

struct Moments {
  double *mean, *m2;
  // Adds `count` values, given by their mean and squared deviations, to the `before` values merged so far.
  void merge(int64_t before, int64_t count, double mean_b, double m2_b) const {
    const double share = static_cast<double>(count) / static_cast<double>(before + count);
    const double delta = mean_b - *mean;
    *mean += delta * share;
    *m2 += m2_b + delta * delta * share * static_cast<double>(before);
  }
};

// [rows, kWidth * kVecs] values of a block. The last vector has `lanes` valid lanes.
template <int kVecs, class T>
void strip_block(const T* x, int64_t stride, int rows, int lanes, int64_t before, double* mean, double* m2) {
  const auto at = [&](int row, int v) {
    const T* p = x + row * stride + v * kWidth;
    return lanes < kWidth && v == kVecs - 1 ? load(p, lanes) : load(p);
  };
  Vec pivot[kVecs] = {}, sum[kVecs] = {}, square[kVecs] = {};
  for (int row = 0; row < rows; ++row) {
    for (int v = 0; v < kVecs; ++v) pivot[v] += at(row, v);
  }
  for (int v = 0; v < kVecs; ++v) pivot[v] *= splat(1.0f / static_cast<float>(rows));
  for (int row = 0; row < rows; ++row) {
    for (int v = 0; v < kVecs; ++v) {
      const Vec d = at(row, v) - pivot[v];
      sum[v] += d;
      square[v] += d * d;
    }
  }
  const double inverse = 1.0 / rows, share = static_cast<double>(rows) / static_cast<double>(before + rows);
  const double weight = share * static_cast<double>(before);
  for (int v = 0; v < kVecs; ++v) {
    float p[kWidth], s[kWidth], q[kWidth];
    store(p, pivot[v]), store(s, sum[v]), store(q, square[v]);
    const int n = v == kVecs - 1 ? lanes : kWidth;
    for (int i = 0; i < n; ++i) {
      const double s_i = s[i], block = p[i] + s_i * inverse, delta = block - mean[v * kWidth + i];
      mean[v * kWidth + i] += delta * share;
      m2[v * kWidth + i] += not_negative(q[i] - s_i * s_i * inverse) + delta * delta * weight;
    }
  }
}

template <class T>
void strip_chunk(const T* x, int64_t stride, int64_t rows, int n, double* mean, double* m2) {
  for (int i = 0; i < n; ++i) mean[i] = m2[i] = 0;
  for (int64_t row = 0; row < rows; row += kRows) {
    const int block = static_cast<int>(std::min<int64_t>(kRows, rows - row));
    const T* p = x + row * stride;
    int i = 0;
    for (; i + kGroup * kWidth <= n; i += kGroup * kWidth) {
      strip_block<kGroup>(p + i, stride, block, kWidth, row, mean + i, m2 + i);
    }
    for (; i < n; i += kWidth) {
      strip_block<1>(p + i, stride, block, std::min(kWidth, n - i), row, mean + i, m2 + i);
    }
  }
}

// Sums over the values of units [begin, end) of one channel: f(accumulators, vector). Lanes beyond the end hold `fill`.
template <class T, class F>
void for_units(const T* x, const Partition& cut, int64_t begin, int64_t end, int64_t c, float fill, const F& f) {
  for (int64_t unit = begin; unit < end; ++unit) {
    const T* p = x + cut.offset(unit, c);
    const int64_t n = cut.length(unit);
    int64_t i = 0;
    for (; i + kSums * kWidth <= n; i += kSums * kWidth) {
      for (int v = 0; v < kSums; ++v) f(v, load(p + i + v * kWidth));
    }
    int v = 0;
    for (; i + kWidth <= n; i += kWidth) f(v++, load(p + i));
    if (i < n) {
      Vec rest = splat(fill);
      for (int lane = 0; lane < n - i; ++lane) rest[lane] = load(p + i + lane, 1)[0];
      f(v, rest);
    }
  }
}

inline double total(const Vec* sums) {
  double result = 0;
  for (int v = 0; v < kSums; ++v) {
    for (int i = 0; i < kWidth; ++i) result += sums[v][i];
  }
  return result;
}

template <class T>
void channel_chunk(const T* x, const Partition& cut, int64_t chunk, int64_t c, Moments out) {
  *out.mean = *out.m2 = 0;
  const int64_t step = ceil_div(kBlock, std::min(cut.inner, kSegment));
  int64_t before = 0;
  for (int64_t unit = cut.begin(chunk); unit < cut.end(chunk); unit += step) {
    const int64_t last = std::min(unit + step, cut.end(chunk));
    int64_t count = 0;
    for (int64_t u = unit; u < last; ++u) count += cut.length(u);
    Vec pivot[kSums] = {}, sum[kSums] = {}, square[kSums] = {};
    for_units(x, cut, unit, last, c, 0, [&](int v, Vec value) { pivot[v] += value; });
    const float near_mean = static_cast<float>(total(pivot) / static_cast<double>(count));
    for_units(x, cut, unit, last, c, near_mean, [&](int v, Vec value) {
      const Vec d = value - near_mean;
      sum[v] += d;
      square[v] += d * d;
    });
    const double s = total(sum), n = static_cast<double>(count);
    out.merge(before, count, near_mean + s / n, not_negative(total(square) - s * s / n));
    before += count;
  }
}

void finish(const Partition& cut, int64_t count, const double* mean_parts, const double* m2_parts, float* mean_out,
            float* invstd_out, MutableChannels running_mean, MutableChannels running_var, double factor, double eps) {
  const int64_t channels = cut.channels;
  parallel_for(channels, ceil_div(kGrain, cut.chunks), [&](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += kStrip) {
      const int n = static_cast<int>(std::min<int64_t>(kStrip, end - first));
      double mean[kStrip] = {}, m2[kStrip] = {};
      int64_t before = 0;
      for (int64_t chunk = 0; chunk < cut.chunks; ++chunk) {
        const int64_t values = cut.values(chunk);
        for (int i = 0; i < n; ++i) {
          const int64_t part = chunk * channels + first + i;
          Moments{mean + i, m2 + i}.merge(before, values, mean_parts[part], m2_parts[part]);
        }
        before += values;
      }
      for (int i = 0; i < n; ++i) {
        const int64_t c = first + i;
        mean_out[c] = static_cast<float>(mean[i]);
        invstd_out[c] = static_cast<float>(1 / std::sqrt(m2[i] / static_cast<double>(count) + eps));
        if (running_mean.data) {
          set(running_mean, c, static_cast<float>((1 - factor) * get(running_mean, c) + factor * mean[i]));
        }
        if (running_var.data) {
          // of one value the variance is NaN, as in torch.native_batch_norm
          const double unbiased = m2[i] / static_cast<double>(count - 1);
          set(running_var, c, static_cast<float>((1 - factor) * get(running_var, c) + factor * unbiased));
        }
      }
    }
  });
}

}  // namespace

size_t bn_stats_scratch(Layout layout) {
  return static_cast<size_t>(Partition(layout).chunks * layout.channels) * 2 * sizeof(double);
}

void bn_stats(Layout layout, const void* x, float* mean, float* invstd, MutableChannels running_mean,
              MutableChannels running_var, const int64_t* num_batches_tracked, double momentum, double eps,
              void* scratch, void*) {
  const Partition cut(layout);
  const int64_t channels = layout.channels;
  double* mean_parts = static_cast<double*>(scratch);
  double* m2_parts = mean_parts + cut.chunks * channels;
  dispatch(layout.dtype, [&](auto type) {
    const auto* values = static_cast<const decltype(type)*>(x);
    for_each_chunk(
        cut,
        [&](int64_t chunk, int64_t first, int n) {
          const int64_t row = cut.begin(chunk), part = chunk * channels + first;
          strip_chunk(values + row * channels + first, channels, cut.end(chunk) - row, n, mean_parts + part,
                      m2_parts + part);
        },
        [&](int64_t chunk, int64_t c) {
          const int64_t part = chunk * channels + c;
          channel_chunk(values, cut, chunk, c, Moments{mean_parts + part, m2_parts + part});
        });
  });
  const double factor = num_batches_tracked ? 1.0 / static_cast<double>(*num_batches_tracked) : momentum;
  finish(cut, layout.count(), mean_parts, m2_parts, mean, invstd, running_mean, running_var, factor, eps);
}

void bn_stats_merge(int64_t world, int64_t channels, const float* parts, double count, double eps, float* mean,
                    float* invstd, float* var, float* share, void*) {
  const int64_t row = 2 * channels + 1;
  for (int64_t c = 0; c < channels; ++c) {
    double merged_mean = 0, merged_m2 = 0;
    int64_t before = 0;
    for (const float* part = parts; part < parts + world * row; part += row) {
      const int64_t values = static_cast<int64_t>(part[2 * channels]);
      if (values == 0) continue;
      const double m2 = values == 1 ? 0 : static_cast<double>(part[channels + c]) * static_cast<double>(values - 1);
      Moments{&merged_mean, &merged_m2}.merge(before, values, part[c], m2);
      before += values;
    }
    const double total = static_cast<double>(before);
    mean[c] = static_cast<float>(merged_mean);
    invstd[c] = static_cast<float>(1 / std::sqrt(merged_m2 / total + eps));
    var[c] = static_cast<float>(merged_m2 / (total - 1));
    share[c] = static_cast<float>(count / total);
  }
}

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
