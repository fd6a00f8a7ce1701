// Compute capability 8.0 and later: each instruction of ptx.cuh as inline PTX or an intrinsic.
//
// "memory" clobbers keep the compiler from reordering shared-memory accesses, copies and barriers. volatile keeps it
// from merging or dropping them. Pure arithmetic has neither, so the compiler can schedule it.
#pragma once

#include "ptx/ptx.cuh"

namespace resnet_fused::ptx {

#define PTX_FN static __device__ __forceinline__

PTX_FN int tid() { return threadIdx.x; }
PTX_FN int threads() { return blockDim.x; }
PTX_FN int lane() { return threadIdx.x % 32; }
PTX_FN int warp() { return threadIdx.x / 32; }
PTX_FN int bid_x() { return blockIdx.x; }
// The compiler does not merge it with bid_x(): a value computed from it again need not stay in registers in between.
PTX_FN int bid_x_again() {
  int x;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(x));
  return x;
}
PTX_FN int bid_y() { return blockIdx.y; }
PTX_FN int bid_z() { return blockIdx.z; }
PTX_FN int grid_x() { return gridDim.x; }
PTX_FN int grid_y() { return gridDim.y; }
PTX_FN int grid_z() { return gridDim.z; }

// Registers <-> types.

template <class To, class From>
PTX_FN To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast: sizes differ");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// Shared memory.

PTX_FN uint32_t smem_base() {
  extern __shared__ __align__(128) unsigned char dynamic_shared[];
  return static_cast<uint32_t>(__cvta_generic_to_shared(dynamic_shared));
}

template <class T>
PTX_FN T ld_shared(uint32_t addr) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "ld_shared: 2, 4, 8, 16 bytes");
  if constexpr (sizeof(T) == 2) {
    uint16_t v;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(v) : "r"(addr) : "memory");
    return bit_cast<T>(v);
  } else if constexpr (sizeof(T) == 4) {
    uint32_t v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(addr) : "memory");
    return bit_cast<T>(v);
  } else if constexpr (sizeof(T) == 8) {
    Words2 v;
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v.w[0]), "=r"(v.w[1]) : "r"(addr) : "memory");
    return bit_cast<T>(v);
  } else {
    Words4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.w[0]), "=r"(v.w[1]), "=r"(v.w[2]), "=r"(v.w[3])
                 : "r"(addr)
                 : "memory");
    return bit_cast<T>(v);
  }
}

template <class T>
PTX_FN void st_shared(uint32_t addr, T value) {
  static_assert(sizeof(T) == 2 || sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "st_shared: 2, 4, 8, 16 bytes");
  if constexpr (sizeof(T) == 2) {
    asm volatile("st.shared.u16 [%0], %1;" ::"r"(addr), "h"(bit_cast<uint16_t>(value)) : "memory");
  } else if constexpr (sizeof(T) == 4) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(addr), "r"(bit_cast<uint32_t>(value)) : "memory");
  } else if constexpr (sizeof(T) == 8) {
    Words2 v = bit_cast<Words2>(value);
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(addr), "r"(v.w[0]), "r"(v.w[1]) : "memory");
  } else {
    Words4 v = bit_cast<Words4>(value);
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(addr), "r"(v.w[0]), "r"(v.w[1]), "r"(v.w[2]),
                 "r"(v.w[3])
                 : "memory");
  }
}

// Lane l names row l % 8 of matrix l / 8. Register i receives the fragment of matrix i (row lane / 4, columns 2 * (lane
// % 4) and the next). _trans gives the fragments of the transposed matrices. x2 reads the addresses of lanes 0..15.
PTX_FN void ldmatrix_x4(uint32_t (&r)[4], uint32_t addr) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(addr)
               : "memory");
}
PTX_FN void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t addr) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(addr)
               : "memory");
}
PTX_FN void ldmatrix_x2(uint32_t (&r)[2], uint32_t addr) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(addr)
               : "memory");
}
PTX_FN void ldmatrix_x2_trans(uint32_t (&r)[2], uint32_t addr) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(addr)
               : "memory");
}

// Global memory.

template <int Bytes>
struct Access;  // the register type that the load and store intrinsics want
template <>
struct Access<2> {
  using type = unsigned short;
};
template <>
struct Access<4> {
  using type = unsigned;
};
template <>
struct Access<8> {
  using type = uint2;
};
template <>
struct Access<16> {
  using type = uint4;
};
template <class T>
using access_t = typename Access<sizeof(T)>::type;

template <class T>
PTX_FN T ld_global(const void* p) {
  return bit_cast<T>(*static_cast<const access_t<T>*>(p));
}
template <class T>
PTX_FN T ld_global_nc(const void* p) {
  return bit_cast<T>(__ldg(static_cast<const access_t<T>*>(p)));
}
template <class T>
PTX_FN T ld_global_stream(const void* p) {
  return bit_cast<T>(__ldcs(static_cast<const access_t<T>*>(p)));
}
template <class T>
PTX_FN void st_global(void* p, T value) {
  *static_cast<access_t<T>*>(p) = bit_cast<access_t<T>>(value);
}
template <class T>
PTX_FN void st_global_stream(void* p, T value) {
  __stcs(static_cast<access_t<T>*>(p), bit_cast<access_t<T>>(value));
}

// Cp.async: global -> shared without registers.

PTX_FN void cp_async16(uint32_t dst, const void* src, int src_bytes) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(dst), "l"(__cvta_generic_to_global(src)),
               "r"(src_bytes)
               : "memory");
}
template <int Bytes>
PTX_FN void cp_async(uint32_t dst, const void* src, int src_bytes) {
  static_assert(Bytes == 4 || Bytes == 8, "cp_async: 4 or 8 bytes, 16 are cp_async16");
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(dst), "l"(__cvta_generic_to_global(src)),
               "n"(Bytes), "r"(src_bytes)
               : "memory");
}
PTX_FN void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Pending>
PTX_FN void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Pending) : "memory");
}

// Barriers.

PTX_FN void sync_threads() { __syncthreads(); }
// Named barriers 1..15 (0 is sync_threads). threads: the number of threads that take part, a multiple of 32.
PTX_FN void bar_sync(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
PTX_FN void bar_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
PTX_FN void sync_warp() { __syncwarp(); }

// Warp shuffles.

template <class T>
PTX_FN T shfl_xor(T value, int mask) {
  return bit_cast<T>(__shfl_xor_sync(0xffffffffu, bit_cast<uint32_t>(value), mask));
}
template <class T>
PTX_FN T shfl_down(T value, int delta) {
  return bit_cast<T>(__shfl_down_sync(0xffffffffu, bit_cast<uint32_t>(value), delta));
}
template <class T>
PTX_FN T shfl_idx(T value, int source) {
  return bit_cast<T>(__shfl_sync(0xffffffffu, bit_cast<uint32_t>(value), source));
}

// Tensor cores.

// With g = lane / 4 and t = lane % 4 (a pair: the lower column in the lower half of the register):
//   a[0] (g, 2t..2t+1)  a[1] (g+8, 2t..)  a[2] (g, 2t+8..)  a[3] (g+8, 2t+8..)      A is 16 x 16 [m, k]
//   b[0] (k = 2t..2t+1, n = g)  b[1] (k = 2t+8.., n = g)                            B is 16 x 8 [k, n]
//   d[0] (g, 2t)  d[1] (g, 2t+1)  d[2] (g+8, 2t)  d[3] (g+8, 2t+1)                  D is 16 x 8 [m, n]
template <class T>
PTX_FN void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
__device__ __forceinline__ void mma_m16n8k16<f16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
__device__ __forceinline__ void mma_m16n8k16<bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Operands are float32 bits rounded by to_tf32. With g and t as above:
//   a[0] (g, t)  a[1] (g+8, t)  a[2] (g, t+4)  a[3] (g+8, t+4)  b[0] (k = t, n = g)  b[1] (k = t+4, n = g)  d as above
PTX_FN void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Numbers.

PTX_FN float to_float(float v) { return v; }
PTX_FN float to_float(f16 v) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(v.bits));
  return x;
}
PTX_FN float to_float(bf16 v) { return __uint_as_float(static_cast<uint32_t>(v.bits) << 16); }

template <class T>
PTX_FN T from_float(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else {
    T v;
    if constexpr (is_f16<T>) {
      asm("cvt.rn.f16.f32 %0, %1;" : "=h"(v.bits) : "f"(x));
    } else {
      asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(v.bits) : "f"(x));
    }
    return v;
  }
}

// Two 16-bit values in a register, `lo` in the lower half.
template <class T>
PTX_FN uint32_t pack(float lo, float hi) {
  uint32_t r;
  if constexpr (is_f16<T>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(hi), "f"(lo));
  }
  return r;
}
template <class T>
PTX_FN void unpack(uint32_t word, float& lo, float& hi) {
  lo = to_float(T{static_cast<uint16_t>(word & 0xffff)});
  hi = to_float(T{static_cast<uint16_t>(word >> 16)});
}

// Rounded to nearest (ties away from zero) to 10 mantissa bits; the tensor core ignores the rest.
PTX_FN uint32_t to_tf32(float x) {
  uint32_t r;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(r) : "f"(x));
  return r;
}

PTX_FN float fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
PTX_FN float add(float a, float b) { return __fadd_rn(a, b); }
PTX_FN float mul(float a, float b) { return __fmul_rn(a, b); }
PTX_FN float div(float a, float b) { return __fdiv_rn(a, b); }
PTX_FN float sqrt(float a) { return __fsqrt_rn(a); }

#undef PTX_FN

}  // namespace resnet_fused::ptx
