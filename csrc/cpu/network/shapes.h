// The shapes that the kernels take, from the numbers of a step.
#pragma once

#include "cpu/depthwise/depthwise.h"
#include "cpu/direct/direct.h"
#include "cpu/grouped/grouped.h"
#include "cpu/maps/maps.h"
#include "cpu/network/network.h"
#include "cpu/stem/amx_stem.h"
#include "cpu/stem/stem.h"
#include "cpu/winograd/winograd.h"

namespace resnet_fused::cpu {

inline DirectShape direct_shape(const Step& s, bool bf16) {
  const DirectFormat format = s.kind == StepKind::amx ? (bf16 ? DirectFormat::amx_bf16 : DirectFormat::amx_f32)
                                                      : (bf16 ? DirectFormat::bf16 : DirectFormat::f32);
  return {s.convolution(), format};
}
inline StemShape stem_shape(const Step& s) { return {s.convolution()}; }
inline AmxStemShape amx_stem_shape(const Step& s, bool bf16) { return {stem_shape(s), bf16 ? 1 : 3}; }
inline WinogradShape winograd_shape(const Step& s, bool bf16) {
  return {s.convolution(), static_cast<int>(s.m), bf16 ? DType::bf16 : DType::f32};
}
inline DepthwiseShape depthwise_shape(const Step& s, bool bf16) {
  return {s.n, s.h, s.w, s.c, s.kernel_h, s.stride, s.padding, bf16};
}
inline GroupedShape grouped_shape(const Step& s, bool bf16) {
  return {s.n, s.h, s.w, s.c, s.width, s.stride, s.padding, bf16};
}
inline PoolShape pool_shape(const Step& s) {
  return {{s.n, s.h, s.w, s.c}, s.kernel_h, s.stride, s.padding, s.convolution().p, s.convolution().q};
}
inline WinogradWeights weights_of(const Step& s, bool bf16) {
  return s.taps && !bf16 ? WinogradWeights::taps : WinogradWeights::points;
}

}  // namespace resnet_fused::cpu
