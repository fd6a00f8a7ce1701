// The instructions of csrc/ptx/cluster.cuh: one right use of all of them, and mistakes that the emulator must report.
// On a GPU of compute capability 9.0 or later the right use runs with the same expectations:
//   nvcc -x cu -std=c++17 -arch=sm_90 -Icsrc -Itests tests/emulator/checks/cluster_checks.cpp -o checks && ./checks
#include "cuda/base/clusters.h"
#include "emulator/checks/harness.h"
#include "ptx/cluster.cuh"

namespace micro {

enum class Mistake {
  none,
  read_early,
  read_only,
  write_early,
  trigger_early,
  never_waits,
  no_barrier,
  no_last_barrier,
  no_last_wait,
  only_reads,
  no_arrive,
  twice,
  plain_load,
  no_such_block,
  outside,
  overwrites
};

constexpr int kThreads = 64, kSharedBytes = 16 * kThreads;

__global__ void fill_kernel(int* x) {
  const int i = ptx::bid_x() * ptx::threads() + ptx::tid();
  ptx::st_global(x + i, 3 * i + 1);
}

// out[i] = constant[i % kThreads] + the words of the same thread of every block of the cluster, each with its block's
// rank.
template <Mistake kMistake>
__global__ void cluster_kernel(const int* x, const int* constant, int* out, int size) {
  const int i = ptx::bid_y() * ptx::threads() + ptx::tid();
  const uint32_t mine = ptx::smem_base() + 16 * ptx::tid();
  if (kMistake == Mistake::never_waits) return;
  ptx::prefetch_l2(x + i);
  int sum = ptx::ld_global_nc<int>(constant + ptx::tid());
  if (kMistake == Mistake::read_early) sum += ptx::ld_global<int>(x + i);
  if (kMistake == Mistake::write_early) ptx::st_global(out + i, sum);
  if (kMistake == Mistake::trigger_early) ptx::grid_trigger();
  ptx::grid_wait();
  const int value = kMistake == Mistake::read_only ? ptx::ld_global_nc<int>(x + i) : ptx::ld_global<int>(x + i);
  ptx::grid_trigger();
  ptx::st_shared(mine, ptx::Vec<int, 4>{{value, 2 * value, 5 * value, ptx::cluster_rank()}});
  if (kMistake != Mistake::no_barrier) {
    if (kMistake == Mistake::only_reads) {
      ptx::cluster_arrive_reads();
    } else if (kMistake != Mistake::no_arrive) {
      ptx::cluster_arrive();
    }
    if (kMistake == Mistake::twice) ptx::cluster_arrive();
    ptx::cluster_wait();
  }
  for (int rank = 0; rank < size + (kMistake == Mistake::no_such_block); ++rank) {
    const uint32_t there =
        ptx::cluster_address(mine, rank) + (kMistake == Mistake::outside && ptx::tid() == kThreads - 1 ? 16 : 0);
    if (kMistake == Mistake::plain_load) ptx::ld_shared<int>(there);
    const auto four = ptx::ld_cluster<ptx::Vec<int, 4>>(there);
    const auto two = ptx::ld_cluster<ptx::Vec<int, 2>>(there + 8);
    sum += four.v[0] + 7 * four.v[3] + two.v[0] + ptx::ld_cluster<int>(there + 4);
  }
  if (kMistake == Mistake::overwrites) ptx::st_shared(mine, sum);
  ptx::st_global(out + i, sum);  // uses what was read
  if (kMistake != Mistake::no_last_barrier) {
    ptx::cluster_arrive_reads();
    if (kMistake != Mistake::no_last_wait) ptx::cluster_wait();
  }
}

// An ordinary kernel, then two kernels that launch early. Each reads what the previous kernel wrote, and may begin
// before it has ended.
template <Mistake kMistake = Mistake::none>
void chain(int size, int clusters = 3) {
  const int n = size * kThreads * clusters;
  Buffer<int> x(n), y(n), z(n), constant(kThreads);
  for (int i = 0; i < kThreads; ++i) constant[i] = i * i;
  const cuda::Grid grid{1, size * clusters}, cluster{1, size};
  cuda::launch("micro", fill_kernel, {size * clusters}, kThreads, 0, nullptr, x.get());
  cuda::launch_clusters("micro", cluster_kernel<kMistake>, grid, cluster, kThreads, kSharedBytes, nullptr, x.get(),
                        constant.get(), y.get(), size);
  cuda::launch_clusters("micro", cluster_kernel<kMistake>, grid, cluster, kThreads, kSharedBytes, nullptr, y.get(),
                        constant.get(), z.get(), size);
#ifndef HOST_EMULATION
  cuda::check("micro", "cudaDeviceSynchronize", cudaDeviceSynchronize());
#endif
  std::vector<int> from(n);
  for (int i = 0; i < n; ++i) from[i] = 3 * i + 1;
  for (Buffer<int>* to : {&y, &z}) {
    for (int i = 0; i < n; ++i) {
      int want = i % kThreads * (i % kThreads);
      const int first = i / (size * kThreads) * size * kThreads + i % kThreads;
      for (int rank = 0; rank < size; ++rank) want += 8 * from[first + rank * kThreads] + 7 * rank;
      expect_equal((*to)[i], want, "cluster", i);
    }
    for (int i = 0; i < n; ++i) from[i] = (*to)[i];
  }
}

#ifdef HOST_EMULATION
template <Mistake kMistake>
Check wrong(const char* name, const char* expected) {
  return {name, [expected] {
            std::string message;
            try {
              chain<kMistake>(4);
            } catch (const emu::Fault& fault) {
              message = fault.what();
            }
            expect(message.find(expected) != std::string::npos, "another message: " + message);
          }};
}

void grid_of_other_clusters() {
  Buffer<int> x(1024);
  try {
    cuda::launch_clusters("micro", fill_kernel, {3}, {2}, kThreads, 0, nullptr, x.get());
  } catch (const emu::Fault&) {
    return;
  }
  expect(false, "was not noticed");
}

void refusals() {
  expect(cuda::cluster_refusal({9, 0}).empty() && cuda::cluster_refusal({12, 0}).empty(), "refused where they are");
  expect(cuda::cluster_refusal({8, 9}) == "clusters of blocks need compute capability 9.0, but the device has 8.9",
         "another reason");
}
#endif

}  // namespace micro

int main() {
  using namespace micro;
#ifndef HOST_EMULATION
  if (const std::string why = cuda::cluster_refusal(cuda::capability("micro")); !why.empty()) {
    std::printf("nothing to check: %s\n", why.c_str());
    return 0;
  }
#endif
  std::vector<Check> checks = {{"one block", [] { chain(1); }},
                               {"clusters of two", [] { chain(2); }},
                               {"clusters of four", [] { chain(4); }},
                               {"clusters of eight", [] { chain(8); }}};
#ifdef HOST_EMULATION
  checks.push_back(wrong<Mistake::read_early>("a read before grid_wait", "before grid_wait of what the kernel before"));
  checks.push_back(wrong<Mistake::read_only>("a read-only load", "ld.global.nc of what the kernel before writes"));
  checks.push_back(wrong<Mistake::write_early>("a write before grid_wait", "the kernel before may still read there"));
  checks.push_back(wrong<Mistake::trigger_early>("grid_trigger before grid_wait", "two kernels ahead may still run"));
  checks.push_back(wrong<Mistake::never_waits>("no grid_wait", "ends without grid_wait"));
  checks.push_back(wrong<Mistake::no_barrier>("no barrier before the reads", "reads "));
  checks.push_back(wrong<Mistake::no_last_barrier>("no barrier before the end", "leave"));
  checks.push_back(wrong<Mistake::no_last_wait>("no wait before the end", "between cluster_arrive and cluster_wait"));
  checks.push_back(wrong<Mistake::only_reads>("an arrival that orders no writes", "race: reads"));
  checks.push_back(wrong<Mistake::no_arrive>("cluster_wait alone", "cluster_wait without cluster_arrive"));
  checks.push_back(wrong<Mistake::twice>("cluster_arrive twice", "cluster_arrive twice"));
  checks.push_back(
      wrong<Mistake::plain_load>("ld.shared of another block's memory", "the address is one of a cluster"));
  checks.push_back(wrong<Mistake::no_such_block>("a rank too high", "cluster_address of block 4"));
  checks.push_back(wrong<Mistake::outside>("outside of another block's memory", "outside the 1024 bytes"));
  checks.push_back(wrong<Mistake::overwrites>("overwrites what others read", "race: "));
  checks.push_back({"a grid that is not made of clusters", grid_of_other_clusters});
  checks.push_back({"devices without clusters", refusals});
#endif
  return run_all(checks, 5) == 0 ? 0 : 1;
}
