// Copies that go to several blocks of a cluster at once, and barriers of other blocks (csrc/ptx/hopper.cuh): one right
// use, and mistakes that the emulator must report. On a GPU of compute capability 9.0 the right use runs as well:
//   nvcc -x cu -std=c++17 -gencode=arch=compute_90a,code=sm_90a -Icsrc -Itests/emulator
//     tests/emulator/checks/multicast_checks.cpp -o checks && ./checks
#include "cuda/base/launch_together.h"
#include "cuda/base/tensor_map.h"
#include "emulator/checks/harness.h"
#include "ptx/cluster.cuh"
#include "ptx/hopper.cuh"

namespace micro {

enum class Mistake {
  none,
  no_barrier_at_begin,
  no_barrier_at_end,
  no_init_fence,
  not_released,
  not_released_there,
  reads_what_it_was_told,
  wrong_mask,
  no_such_block,
  plain_address,
  half_the_bytes
};

constexpr int kRows = 64, kRounds = 5, kSlotBytes = kRows * 128;

// Two blocks fill one slot of 64 x 64 values in each block, half by half. The second warp of each block reads the slot.
template <Mistake kMistake>
__global__ void __launch_bounds__(64) multicast_kernel(const __grid_constant__ ptx::TensorMap x, ptx::Words4* out) {
  const uint32_t slot = (ptx::smem_base() + 1023) / 1024 * 1024, full = slot + kSlotBytes, empty = full + 8;
  const int rank = ptx::cluster_rank(), lane = ptx::lane();
  if (ptx::tid() == 0) {
    ptx::mbar_init(full, 1);
    ptx::mbar_init(empty, kMistake == Mistake::not_released_there ? 1 : 2);
    if (kMistake != Mistake::no_init_fence) ptx::mbar_init_fence();
  }
  ptx::sync_threads();
  if (kMistake != Mistake::no_barrier_at_begin) {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  }
  if (ptx::warp() == 0) {
    if (lane == 0) {
      for (int round = 0; round < kRounds; ++round) {
        if (kMistake != Mistake::not_released) ptx::mbar_wait(empty, (round + 1) & 1);
        if (kMistake == Mistake::reads_what_it_was_told && round > 0) {
          ptx::ld_cluster<int>(ptx::cluster_address(empty + 8, 1 - rank));
        }
        ptx::mbar_arrive_expect(full, kMistake == Mistake::half_the_bytes ? kSlotBytes / 2 : kSlotBytes);
        const int blocks = kMistake == Mistake::wrong_mask ? 1 << rank : kMistake == Mistake::no_such_block ? 7 : 3;
        ptx::copy_2d_multicast(slot + rank * kSlotBytes / 2, x, 0, kRows * round + kRows / 2 * rank, full, blocks);
      }
    }
  } else {
    for (int round = 0; round < kRounds; ++round) {
      ptx::mbar_wait(full, round & 1);
      for (int i = lane; i < kRows * 8; i += 32) {
        const int row = i / 8, piece = i % 8;
        const auto words = ptx::ld_shared<ptx::Words4>(slot + row * 128 + (piece ^ row % 8) * 16);
        ptx::st_global(out + (rank * kRounds + round) * kRows * 8 + i, words);
      }
      if (kMistake == Mistake::reads_what_it_was_told && lane == 0) ptx::st_shared(empty + 8, round);
      ptx::sync_warp();
      if (kMistake == Mistake::not_released_there) {
        if (lane == 0) ptx::mbar_arrive(empty);
      } else if (lane < 2) {
        ptx::mbar_arrive_cluster(kMistake == Mistake::plain_address ? empty : ptx::cluster_address(empty, lane));
      }
    }
  }
  ptx::sync_warp();
  if (kMistake != Mistake::no_barrier_at_end) {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  }
}

template <Mistake kMistake = Mistake::none>
void multicast() {
  constexpr int kValues = kRounds * kRows * 64;
  Buffer<uint16_t> x(kValues), out(2 * kValues);
  for (int i = 0; i < kValues; ++i) x[i] = static_cast<uint16_t>(i * 7 + 1);
  const auto map = cuda::matrix_map("micro", {x.get(), DType::f16, kRounds * kRows, 64, 128, kRows / 2});
  cuda::launch_together("micro", multicast_kernel<kMistake>, 2, 2, 64, 1024 + kSlotBytes + 32, nullptr, map,
                        reinterpret_cast<ptx::Words4*>(out.get()));
#ifndef HOST_EMULATION
  cuda::check("micro", "cudaDeviceSynchronize", cudaDeviceSynchronize());
#endif
  for (int i = 0; i < 2 * kValues; ++i) expect_equal(int{out[i]}, int{x[i % kValues]}, "x", i);
}

#ifdef HOST_EMULATION
template <Mistake kMistake>
Check wrong(const char* name, std::vector<std::string> expected) {
  return {name, [expected] {
            std::string message;
            try {
              multicast<kMistake>();
            } catch (const emu::Fault& fault) {
              message = fault.what();
            }
            for (const std::string& one : expected) {
              if (message.find(one) != std::string::npos) return;
            }
            expect(false, "another message: " + message);
          }};
}
#endif

}  // namespace micro

int main() {
  using namespace micro;
  if (!on_hopper()) return 0;
  std::vector<Check> checks = {{"two blocks fill each other's slots", [] { multicast(); }}};
#ifdef HOST_EMULATION
  // The other block's barrier may not be initialised yet, or nothing orders its use after its initialisation.
  checks.push_back(
      wrong<Mistake::no_barrier_at_begin>("no barrier before the first copy", {"never written", "race: reads"}));
  checks.push_back(wrong<Mistake::no_barrier_at_end>("no barrier before the end", {"leave", "has left"}));
  checks.push_back(wrong<Mistake::no_init_fence>("no fence after mbarrier.init", {"was not fenced"}));
  checks.push_back(wrong<Mistake::not_released>("a slot that no one has released",
                                                {"in flight", "may still read", "more arrivals"}));
  checks.push_back(wrong<Mistake::not_released_there>(
      "a slot released in its own block alone", {"in flight", "may still read", "two threads write", "more arrivals"}));
  checks.push_back(
      wrong<Mistake::reads_what_it_was_told>("a read of what a thread wrote before it arrived", {"race: reads"}));
  checks.push_back(wrong<Mistake::wrong_mask>("a copy to its own block alone", {"deadlock"}));
  checks.push_back(wrong<Mistake::no_such_block>("a mask of three blocks", {"of mask 7, which the cluster does not"}));
  checks.push_back(wrong<Mistake::plain_address>("an arrival at an address of the block alone",
                                                 {"an address that cluster_address did not make"}));
  checks.push_back(wrong<Mistake::half_the_bytes>("half of the bytes expected",
                                                  {"never written", "race: reads", "waited for", "deadlock"}));
#endif
  return run_all(checks, 3) == 0 ? 0 : 1;
}
