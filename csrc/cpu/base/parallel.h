// Threads for the CPU launchers: torch's own pool, so that a process never runs two of them against each other.
#pragma once

#include <cstdint>

namespace resnet_fused::cpu {

// Calls body(begin, end, context) on disjoint ranges that cover [0, count), no range shorter than `grain` if it can be
// helped. Where the ranges are cut depends on the number of threads: a sum must not depend on them.
void parallel_ranges(int64_t count, int64_t grain, void (*body)(int64_t begin, int64_t end, const void* context),
                     const void* context);

template <class Body>
void parallel_for(int64_t count, int64_t grain, const Body& body) {
  parallel_ranges(
      count, grain,
      [](int64_t begin, int64_t end, const void* context) { (*static_cast<const Body*>(context))(begin, end); }, &body);
}

int num_threads();

}  // namespace resnet_fused::cpu
