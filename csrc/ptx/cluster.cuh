// What compute capability 9.0 and every later one add to ptx.cuh: blocks that read each other's shared memory, and
// kernels that start before the one ahead of them has ended. Two worlds: sm90_cluster.cuh for nvcc,
// tests/emulator/hopper/cluster.h for g++. Sources that use it are named *_sm90.cu (tools/native_build.py).
//
//   cluster     cluster_rank()                     of this block among those of its cluster
//               cluster_arrive()  cluster_wait()   a barrier of the cluster's threads in two steps, by whole warps:
//                                                  what was written before arrive is seen after wait
//               cluster_address(addr, rank)        where another block has what this one has at `addr`; ends with it
//               ld_cluster<T>(addr)                4, 8, 16 bytes at such an address
//   launches    grid_wait()                        until the kernels before have ended and their writes are seen, each
//                                                  thread for itself; at once where the launch was an ordinary one
//               grid_trigger()                     when every block has: the next kernel may start, if launched early
//   caches      prefetch_l2(p)                     a line of 128 bytes
//
// The rule of an early launch (launch_clusters of launch.h), which the emulator enforces. Before its grid_wait a thread
// reads nothing that the kernel before may write, and writes nothing at all: that kernel may still be reading it. It
// triggers only after its wait, so that in a row of such kernels only the one right before may still run. What may have
// been written since the kernel began is no case for ld_global_nc, not even after the wait. Every thread waits.
#pragma once

#include "ptx/ptx.cuh"

#ifdef HOST_EMULATION
#include "emulator/hopper/cluster.h"  // tests/emulator
#else
#include "ptx/sm90_cluster.cuh"
#endif
