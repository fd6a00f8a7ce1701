// Vector operations of the convolution kernels that vec.h does not have.
#pragma once

#include "cpu/base/vec.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {

// Rounds once where the instruction set has a fused multiply-add. Compilers may contract a * b + c and need not.
inline Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

inline Vec broadcast(const float* p) {
  Vec v = *p - Vec{};  // + would turn -0.0 into 0.0, so the compiler could not use a plain broadcast
#if defined(__AVX512F__)
  // Without this statement gcc folds the broadcast into each fma that uses it, which doubles the loads.
  asm("" : "+v"(v));
#endif
  return v;
}

// v < low ? low : v. The instruction returns its second operand if either operand is NaN or both are zeros.
inline Vec at_least(Vec low, Vec v) {
#if defined(__AVX512F__)
  return _mm512_maskz_max_ps(0xffff, low, v);  // gcc 12 warns about the unmasked intrinsic
#elif defined(__AVX2__)
  return _mm256_max_ps(low, v);
#else
  return v < low ? low : v;
#endif
}

// Lane i of the result is lane from[i] of a, or lane from[i] - kWidth of b.
inline Vec shuffle(Vec a, Vec b, BitVec from) {
#if defined(__AVX512F__)
  return _mm512_permutex2var_ps(a, reinterpret_cast<__m512i>(from), b);
#elif defined(__GNUC__) && !defined(__clang__)
  return __builtin_shuffle(a, b, from);
#else
  Vec result{};
  for (int i = 0; i < kWidth; ++i) result[i] = from[i] < kWidth ? a[from[i]] : b[from[i] - kWidth];
  return result;
#endif
}

// Whether every lane is 0. A NaN is not 0.
inline bool all_zero(Vec v) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_UQ) == 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_NEQ_UQ)) == 0;
#else
  bool zero = true;
  for (int i = 0; i < kWidth; ++i) zero &= v[i] == 0;
  return zero;
#endif
}

// Loads or stores the first n <= kWidth lanes. The functions of vec.h are slow for whole vectors.
template <class T>
inline Vec load_lanes(const T* p, int64_t n) {
  return n == kWidth ? load(p) : load(p, static_cast<int>(n));
}
template <class T>
inline void store_lanes(T* p, Vec v, int64_t n) {
  if (n == kWidth) {
    store(p, v);
  } else {
    store(p, v, static_cast<int>(n));
  }
}

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
