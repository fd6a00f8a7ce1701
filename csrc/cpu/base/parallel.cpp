#include "cpu/base/parallel.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

namespace resnet_fused::cpu {

void parallel_ranges(int64_t count, int64_t grain, void (*body)(int64_t begin, int64_t end, const void* context),
                     const void* context) {
  torch::stable::parallel_for(0, count, grain, [=](int64_t begin, int64_t end) { body(begin, end, context); });
}

void run_loops(const Loops& loops, int threads) {
  Team team(loops, threads);
  torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t) { team.work(static_cast<int>(begin)); });
  team.rethrow();
}

int num_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

}  // namespace resnet_fused::cpu
