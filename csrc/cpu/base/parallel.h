// Threads of the CPU launchers. They are torch's own pool: two pools in one process would slow each other down.
#pragma once

#include <cstdint>

#include "cpu/base/team.h"

namespace resnet_fused::cpu {

// Calls body(begin, end, context) on disjoint ranges that cover [0, count). No range is shorter than `grain`, where
// count allows it. The number of threads decides where the ranges end, so no sum may depend on the ranges.
void parallel_ranges(int64_t count, int64_t grain, void (*body)(int64_t begin, int64_t end, const void* context),
                     const void* context);

template <class Body>
void parallel_for(int64_t count, int64_t grain, const Body& body) {
  parallel_ranges(
      count, grain,
      [](int64_t begin, int64_t end, const void* context) { (*static_cast<const Body*>(context))(begin, end); }, &body);
}

int num_threads();

// Runs loops one after another on a team of `threads` threads, in one region of the pool. Inside another region, the
// calling thread runs them alone, as slot 0.
void run_loops(const Loops& loops, int threads);

}  // namespace resnet_fused::cpu
