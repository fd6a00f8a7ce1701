// Products of pairs of bfloat16. A source that uses them is named *_bf16*.cpp: that name makes the build compile it for
// AVX512-BF16 too (csrc/README.md).
#pragma once

#include "cpu/base/vec_more.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {

// a: two bfloat16 channels of a pixel. b: the same two channels of kWidth filters. The instruction treats subnormals as
// 0.
inline Vec dot(Vec a, Vec b, Vec sum) {
#if defined(__AVX512BF16__)
  return bit_cast<Vec>(_mm512_dpbf16_ps(bit_cast<__m512>(sum), bit_cast<__m512bh>(a), bit_cast<__m512bh>(b)));
#else
  const auto first = [](Vec v) { return bit_cast<Vec>(bit_cast<BitVec>(v) << 16); };
  const auto second = [](Vec v) { return bit_cast<Vec>(bit_cast<BitVec>(v) & 0xffff0000u); };
  return fma(second(a), second(b), fma(first(a), first(b), sum));
#endif
}

// Stores an operand of `dot`.
inline void store_operand(float* p, Vec v) { store(p, v); }
inline void store_operand(bf16* p, Vec v) {
#if defined(__AVX512BF16__)
  const __m256bh words = _mm512_cvtneps_pbh(bit_cast<__m512>(v));
  std::memcpy(p, &words, sizeof(words));
#else
  store(p, v);
#endif
}

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
