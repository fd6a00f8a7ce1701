// What compute capability 9.0 and every later one add to ptx.cuh: blocks that read each other's shared memory, and
// kernels that start before the one ahead of them has ended. Two worlds: sm90_cluster.cuh for nvcc,
// tests/emulator/cluster.h for g++. Sources that use it are named *_sm90.cu (tools/native_build.py).
//
//   cluster     cluster_rank()                     of this block among those of its cluster
//               cluster_arrive()  cluster_wait()   a barrier of all threads of the cluster in two steps; every lane of
//               a warp
//                                                  takes part; what was written before arrive is seen after wait
//               cluster_address(addr, rank)        the shared memory of another block where this one's is `addr`; it
//               ends
//                                                  with that block
//               ld_cluster<T>(addr)                4, 8, 16 bytes at such an address
//   launches    grid_wait()                        until the kernels before have ended and their writes are seen; each
//   thread
//                                                  for itself. At once where the launch was an ordinary one
//               grid_trigger()                     the next kernel may start, if launched early: when every block has
//               said so
//   caches      prefetch_l2(p)                     a line of 128 bytes
//
// The rule of an early launch (launch.h), which the emulator enforces: before its grid_wait a thread reads nothing that
// the kernel before may write, and writes nothing at all, because that kernel may still be reading it; it triggers only
// after its wait. Then the kernel before is the only one that may still run, whatever kernels those were.
#pragma once

#include "ptx.cuh"

#ifdef HOST_EMULATION
#include "cluster.h"  // tests/emulator
#else
#include "sm90_cluster.cuh"
#endif
