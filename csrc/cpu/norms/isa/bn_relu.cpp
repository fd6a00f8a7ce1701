#include "cpu/base/runs.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {
namespace {

enum { kMean, kScale, kBias, kCount };

template <class T, bool kResidual, Activation kActivation>
void apply(Layout layout, const T* x, const Norm& norm, const T* residual, T* out) {
  const auto fill = [&](Strip<kCount>& strip, int64_t first, int n) {
    gather_norm<T>(norm, first, n, strip.values[kMean], strip.values[kScale], strip.values[kBias]);
  };
  for_each_run<kCount>(layout, fill, [&](const auto& constants, int64_t offset, int64_t n) {
    const auto f = [&](int64_t i, Vec x, Vec residual) {
      // The mean is subtracted first: x * scale + (bias - mean * scale) cancels where mean is much larger than the
      // deviation.
      Vec y = (x - constants(kMean, i)) * constants(kScale, i) + constants(kBias, i);
      if (kResidual) y += residual;
      return activate(y, kActivation);
    };
    const T *px = x + offset, *pr = kResidual ? residual + offset : px;
    T* po = out + offset;
    int64_t i = 0;
    for (; i + kWidth <= n; i += kWidth) store(po + i, f(i, load(px + i), load(pr + i)));
    const int rest = static_cast<int>(n - i);
    if (rest > 0) store(po + i, f(i, load(px + i, rest), load(pr + i, rest)), rest);
  });
}

}  // namespace

void bn_relu(Layout layout, const void* x, Epilogue epilogue, void* out, void*) {
  constexpr Activation kNone = Activation::none, kRelu = Activation::relu;
  const bool relu = epilogue.activation == kRelu;
  dispatch(layout.dtype, [&](auto type) {
    using T = decltype(type);
    auto* launch = epilogue.residual ? (relu ? apply<T, true, kRelu> : apply<T, true, kNone>)
                                     : (relu ? apply<T, false, kRelu> : apply<T, false, kNone>);
    launch(layout, static_cast<const T*>(x), epilogue.norm, static_cast<const T*>(epilogue.residual),
           static_cast<T*>(out));
  });
}

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
