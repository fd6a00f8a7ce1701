// Compute capability 9.0 with its own features (sm_90a): each instruction of hopper.cuh as inline PTX.
#pragma once

#include "ptx/hopper.cuh"

namespace resnet_fused::ptx {

#define PTX_FN static __device__ __forceinline__

PTX_FN void mbar_init(uint32_t addr, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(addr), "r"(arrivals) : "memory");
}
PTX_FN void mbar_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }
PTX_FN void mbar_arrive(uint32_t addr) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(addr) : "memory");
}
PTX_FN void mbar_arrive_expect(uint32_t addr, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(addr), "r"(bytes) : "memory");
}
PTX_FN void mbar_wait(uint32_t addr, int parity) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}" ::
          "r"(addr),
      "r"(parity)
      : "memory");
}

// Neither this arrive (.release.cluster) nor the wait (.acquire.cluster) orders memory: ptxas (13.0) would make a
// MEMBAR.ALL.GPU and a CCTL.IVALL of them, for every tap. Such an order matters for writes, and this thread has only
// read.
PTX_FN void mbar_arrive_cluster(uint32_t addr) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(addr) : "memory");
}

// In a block without a cluster, shared::cluster is the block's own shared memory. Older assemblers know no other form.
PTX_FN void copy_2d(uint32_t dst, const TensorMap& map, int column, int row, uint32_t mbar) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          dst),
      "l"(&map), "r"(column), "r"(row), "r"(mbar)
      : "memory");
}

PTX_FN void copy_2d_multicast(uint32_t dst, const TensorMap& map, int column, int row, uint32_t mbar, int blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3}], [%4], %5;" ::"r"(dst),
      "l"(&map), "r"(column), "r"(row), "r"(mbar), "h"(static_cast<uint16_t>(blocks))
      : "memory");
}

PTX_FN void copy_4d(uint32_t dst, const TensorMap& map, int i0, int i1, int i2, int i3, uint32_t mbar) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
      "[%6];" ::"r"(dst),
      "l"(&map), "r"(i0), "r"(i1), "r"(i2), "r"(i3), "r"(mbar)
      : "memory");
}

PTX_FN void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
PTX_FN void store_2d(const TensorMap& map, int column, int row, uint32_t src) {
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%0, {%1, %2}], [%3];" ::"l"(&map), "r"(column),
               "r"(row), "r"(src)
               : "memory");
}
PTX_FN void store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
PTX_FN void store_wait_read() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

// Lane l names row l % 8 of matrix l / 8. Register i holds the fragment of the transpose of matrix i, as after
// ldmatrix_x4_trans.
PTX_FN void stmatrix_x4_trans(uint32_t addr, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(addr), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

template <int Registers>
PTX_FN void registers_down() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}
template <int Registers>
PTX_FN void registers_up() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}

PTX_FN void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
PTX_FN void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int Pending>
PTX_FN void wgmma_wait() {
  static_assert(Pending > 0, "wgmma_finish waits for all");
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}
// The empty asm statements keep the compiler from reading an accumulator before the wait: a memory clobber does not
// cover registers.
template <int Count>
PTX_FN void wgmma_finish(float (&d)[Count]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
  for (int i = 0; i < Count; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Accumulators of a thread, with g = lane / 4, t = lane % 4 and w its warp in the warpgroup: d[4 j + i] is row 16 w + g
// + 8 (i / 2), column 8 j + 2 t + i % 2.
template <class T, int N>
PTX_FN void wgmma(float (&d)[N / 2], uint64_t a, uint64_t b, bool add);

#define PTX_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define PTX_D16(i) PTX_D4(i), PTX_D4(i + 4), PTX_D4(i + 8), PTX_D4(i + 12)
#define PTX_D24(i) PTX_D16(i), PTX_D4(i + 16), PTX_D4(i + 20)
#define PTX_D32(i) PTX_D16(i), PTX_D16(i + 16)
#define PTX_D56(i) PTX_D32(i), PTX_D24(i + 32)
#define PTX_D64(i) PTX_D32(i), PTX_D32(i + 32)
#define PTX_D128(i) PTX_D64(i), PTX_D64(i + 64)
// The last four numbers: neither operand is negated (1, 1), both are k-major (0, 0).
#define PTX_WGMMA(TYPE, NAME, N, REGISTERS, A, B, ADD, OUTPUTS)                                                        \
  template <>                                                                                                          \
  __device__ __forceinline__ void wgmma<TYPE, N>(float (&d)[N / 2], uint64_t a, uint64_t b, bool add) {                \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" ADD ", 0;\nwgmma.mma_async.sync.aligned.m64n" #N "k16.f32." NAME \
                 "." NAME " {" REGISTERS "}, %" A ", %" B ", p, 1, 1, 0, 0;\n}"                                        \
                 : OUTPUTS                                                                                             \
                 : "l"(a), "l"(b), "r"(static_cast<int>(add)));                                                        \
  }
#define PTX_NAMES32                                                        \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define PTX_NAMES56                                                                  \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55"
#define PTX_NAMES64                                                                  \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "           \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define PTX_NAMES128                                                                             \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                       \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "             \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "             \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "             \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "             \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "             \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
PTX_WGMMA(f16, "f16", 64, PTX_NAMES32, "32", "33", "34", PTX_D32(0))
PTX_WGMMA(bf16, "bf16", 64, PTX_NAMES32, "32", "33", "34", PTX_D32(0))
PTX_WGMMA(f16, "f16", 112, PTX_NAMES56, "56", "57", "58", PTX_D56(0))
PTX_WGMMA(bf16, "bf16", 112, PTX_NAMES56, "56", "57", "58", PTX_D56(0))
PTX_WGMMA(f16, "f16", 128, PTX_NAMES64, "64", "65", "66", PTX_D64(0))
PTX_WGMMA(bf16, "bf16", 128, PTX_NAMES64, "64", "65", "66", PTX_D64(0))
PTX_WGMMA(f16, "f16", 256, PTX_NAMES128, "128", "129", "130", PTX_D128(0))
PTX_WGMMA(bf16, "bf16", 256, PTX_NAMES128, "128", "129", "130", PTX_D128(0))
#undef PTX_D4
#undef PTX_D16
#undef PTX_D24
#undef PTX_D32
#undef PTX_D56
#undef PTX_D64
#undef PTX_D128
#undef PTX_NAMES32
#undef PTX_NAMES56
#undef PTX_NAMES64
#undef PTX_NAMES128
#undef PTX_WGMMA
#undef PTX_FN

}  // namespace resnet_fused::ptx
