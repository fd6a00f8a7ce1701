// The instructions that Hopper (sm_90a) adds to ptx.cuh. nvcc takes sm90.cuh, g++ takes tests/emulator/hopper/sm90.h.
// The programs hopper_checks, hopper_boxes, multicast_checks and store_checks of tests/emulator/checks prove them.
// Sources that use them are named *_sm90a.cu (csrc/cuda/base/hopper.h).
//
//   mbarrier    mbar_init(addr, arrivals)          8 bytes of shared memory; one thread, then mbar_init_fence()
//               mbar_arrive(addr)                  one arrival: a thread that waits sees what this one did before
//               mbar_arrive_expect(addr, bytes)    an arrival that also waits for so many bytes of copies
//               mbar_wait(addr, parity)            until the phase of this parity is complete; the first has parity 0
//   copies      copy_2d(dst, map, column, row, mbar)
//                                                  one thread: a box of a matrix into shared memory, zeros outside of
//                                                  the matrix; the bytes of the whole box arrive at mbar
//               copy_2d_multicast(.., mbar, blocks)
//                                                  the same into each block of the cluster whose bit is set, at the
//                                                  offsets that dst and mbar have in this block
//               copy_4d(dst, map, i0, i1, i2, i3, mbar)
//                                                  the same of four dimensions, the innermost first
//   stores      fence_async()                      what this thread has written may be read by stores
//               store_2d(map, column, row, src)    one thread: a box of shared memory into a matrix, nothing outside of
//                                                  the matrix; writes before a fence_async() come before it
//               store_commit()  store_wait_read()  this thread's stores until the last commit have read shared memory;
//                                                  the matrix is written when the kernel has ended
//   clusters    mbar_arrive_cluster(addr)          an arrival at a barrier of any block, addr from cluster_address: a
//                                                  thread that waits there knows that this thread's reads are done;
//                                                  only threads of its own block see what it has written
//   products    wgmma_fence()                      before the first product, and after registers were touched
//               wgmma<T, N>(d, a, b, add)          d (+)= A B^T of a warpgroup: A 64 x 16, B N x 16, both k-major;
//                                                  nothing else may touch d, a and b until the wait
//               wgmma_commit()  wgmma_wait<P>()    all but the newest P > 0 groups are done with shared memory
//               wgmma_finish(d)                    all groups are done; d may be read
//   fragments   stmatrix_x4_trans(addr, r)         the inverse of ldmatrix_x4_trans: matrix i from r[i]; addr: lane l's
//   row registers   registers_down<R>()  registers_up<R>()    of every thread of a warpgroup
#pragma once

#include "ptx/ptx.cuh"

namespace resnet_fused::ptx {

// A matrix or a block of images in global memory, as the copy engine reads it. tensor_map.h makes it on the host. No
// kernel reads these 128 bytes.
struct alignas(64) TensorMap {
  uint64_t opaque[16];
};

constexpr int kSwizzleRow = 128;  // bytes of a row of an operand in shared memory
// the swizzle repeats after eight rows; operands begin at a multiple of it
constexpr int kSwizzleAtom = 8 * kSwizzleRow;
constexpr uint64_t kDescriptorBase = 1ull << 62                                        // swizzle of 128 bytes
                                     | static_cast<uint64_t>(kSwizzleAtom / 16) << 32  // distance of eight rows
                                     | 1ull << 16;                                     // this layout does not read it

}  // namespace resnet_fused::ptx

#ifdef HOST_EMULATION
#include "emulator/hopper/sm90.h"  // tests/emulator
#else
#include "ptx/sm90.cuh"
#endif

namespace resnet_fused::ptx {

// The descriptor of 16 columns (32 bytes) of an operand. `addr` is the address in row 0: a multiple of kSwizzleAtom
// plus 32 * step.
__device__ __forceinline__ uint64_t wgmma_descriptor(uint32_t addr) {
  return kDescriptorBase | static_cast<uint64_t>((addr & 0x3ffff) >> 4);
}

}  // namespace resnet_fused::ptx
