// The instructions that kernels may use. There are two implementations of each.
//
// nvcc takes sm80.cuh: inline PTX and CUDA intrinsics, one small function per instruction. Nothing outside of csrc/ptx
// contains asm or a CUDA header. g++ -DHOST_EMULATION takes tests/emulator/core/sm80.h, which runs the same functions
// on fibers: that is how kernels are tested without a GPU. The list (T: any trivially copyable type of the size named):
//
//   indices     tid() threads() lane() warp()  bid_x() bid_x_again() bid_y() bid_z()  grid_x() grid_y() grid_z()
//   shared      smem_base()                        32-bit address of the dynamic shared memory, aligned to 128 bytes
//               ld_shared<T>(addr)  st_shared(addr, T)                     2, 4, 8, 16 bytes, naturally aligned
//               ldmatrix_x4(r, addr)  ldmatrix_x2(r, addr)  and _trans     r[i]: matrix i; addr: lane l's 16-byte row
//   global      ld_global<T>(p)  st_global(p, T)                           2, 4, 8, 16 bytes, naturally aligned
//               ld_global_nc<T>(p)                 data no one writes during the kernel (the read-only path)
//               ld_global_stream<T>(p)  st_global_stream(p, T)             touched once: evicted first
//   cp.async    cp_async16(dst, src, n)            16 bytes past L1; bytes n..15 become zero (n = 0 reads nothing)
//               cp_async<4 or 8>(dst, src, n)      the same in smaller pieces
//               cp_async_commit()  cp_async_wait<N>()    all but the newest N groups of *this thread* have landed
//   barriers    sync_threads()  bar_sync(id, n)  bar_arrive(id, n)  sync_warp()
//   warp        shfl_xor(v, mask)  shfl_down(v, delta)  shfl_idx(v, lane)  32-bit v; every lane takes part
//   tensor core mma_m16n8k16<f16 or bf16>(d, a, b)  mma_m16n8k8_tf32(d, a, b)      d += a * b, float32 accumulators
//   numbers     to_float(v)  from_float<T>(x)  pack<T>(lo, hi)  unpack<T>(word, lo, hi)  to_tf32(x)
//               fma add mul div sqrt: rounded to nearest and never contracted
//
// The emulator relies on three rules: kernels access shared memory by 32-bit address through these functions only,
// every lane calls every warp-wide function, and no code assumes that the lanes of a warp run in step.
#pragma once

#include <cstdint>

namespace resnet_fused::ptx {

// Storage types for both compilers: cuda_fp16.h is missing where tests run without a toolkit.
struct f16 {
  uint16_t bits;
};
struct bf16 {
  uint16_t bits;
};

template <class T>
inline constexpr bool is_f16 = false;
template <>
inline constexpr bool is_f16<f16> = true;

struct alignas(8) Words2 {
  uint32_t w[2];
};
struct alignas(16) Words4 {
  uint32_t w[4];
};

// N elements that one access of N * sizeof(T) bytes moves.
template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  T v[N];
};

}  // namespace resnet_fused::ptx

#ifdef HOST_EMULATION
#include "emulator/core/sm80.h"  // tests/emulator
#else
#include "ptx/sm80.cuh"
#endif
