#include "cpu/base/runs.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {
namespace {

enum { kMean, kScale, kMeanZ, kScaleZ, kBias, kCount };

template <class T>
void apply(Layout layout, const T* x, const Norm& norm, const T* z, const Norm& norm_z, T* out) {
  const auto fill = [&](Strip<kCount>& strip, int64_t first, int n) {
    float bias[kStrip];
    gather_norm<T>(norm, first, n, strip.values[kMean], strip.values[kScale], strip.values[kBias]);
    gather_norm<T>(norm_z, first, n, strip.values[kMeanZ], strip.values[kScaleZ], bias);
    for (int i = 0; i < n; ++i) strip.values[kBias][i] += bias[i];
  };
  for_each_run<kCount>(layout, fill, [&](const auto& constants, int64_t offset, int64_t n) {
    const auto f = [&](int64_t i, Vec x, Vec z) {
      // The mean is subtracted first. A mean that is folded into the bias would cancel where it is much larger than the
      // deviation.
      const Vec y = (x - constants(kMean, i)) * constants(kScale, i) + constants(kBias, i);
      return activate(y + (z - constants(kMeanZ, i)) * constants(kScaleZ, i), Activation::relu);
    };
    const T *px = x + offset, *pz = z + offset;
    T* po = out + offset;
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) store(po + i, f(i, load(px + i), load(pz + i)));
    const int rest = static_cast<int>(n - i);
    if (rest > 0) store(po + i, f(i, load(px + i, rest), load(pz + i, rest)), rest);
  });
}

}  // namespace

void bn_add_bn_relu(Layout layout, const void* x, Norm norm, const void* z, Norm norm_z, void* out, void*) {
  dispatch(layout.dtype, [&](auto type) {
    using T = decltype(type);
    apply<T>(layout, static_cast<const T*>(x), norm, static_cast<const T*>(z), norm_z, static_cast<T*>(out));
  });
}

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
