// The instructions that compute capability 9.0 adds to ptx.cuh and that later ones keep: blocks read each other's
// shared memory, and kernels start before the previous one has ended. nvcc takes sm90_cluster.cuh, g++ takes
// tests/emulator/hopper/cluster.h. Sources that use them are named *_sm90.cu (tools/native_build.py).
//
//   cluster     cluster_rank()                     of this block among those of its cluster
//               cluster_arrive()  cluster_wait()   a barrier of the cluster's threads in two steps, by whole warps:
//                                                  what was written before arrive is seen after wait
//               cluster_arrive_reads()             an arrival that orders only reads: after the wait the other blocks
//               know
//                                                  that this thread's reads are done, but do not see what it has
//                                                  written
//               cluster_address(addr, rank)        where another block has what this one has at `addr`; ends with it
//               ld_cluster<T>(addr)                4, 8, 16 bytes at such an address
//   launches    grid_wait()                        until the kernels before have ended and their writes are seen, each
//                                                  thread for itself; at once where the launch was an ordinary one
//               grid_trigger()                     when every block has: the next kernel may start, if launched early
//   caches      prefetch_l2(p)                     a line of 128 bytes
//
// The rule of an early launch (launch_clusters of launch.h), which the emulator enforces. Before its grid_wait a thread
// reads nothing that the previous kernel may write. It also writes nothing at all, because the previous kernel may
// still read that memory. It triggers only after its wait: in a row of such kernels only the previous one may then
// still run. ld_global_nc must not read what was written since the kernel began, not even after the wait. Every thread
// waits.
#pragma once

#include "ptx/ptx.cuh"

#ifdef HOST_EMULATION
#include "emulator/hopper/cluster.h"  // tests/emulator
#else
#include "ptx/sm90_cluster.cuh"
#endif
