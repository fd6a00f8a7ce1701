// Stores by tensor maps: boxes of shared memory into a matrix. There are right uses over every edge, and mistakes that
// the emulator must report. On a GPU of compute capability 9.0 the right uses run with the same expectations:
//   nvcc -x cu -std=c++17 -gencode=arch=compute_90a,code=sm_90a -Icsrc -Itests/emulator
//     tests/emulator/checks/store_checks.cpp -o stores && ./stores
#include "cuda/base/tensor_map.h"
#include "emulator/checks/harness.h"
#include "ptx/hopper.cuh"

namespace micro {

constexpr int kRows = 40, kColumns = 136, kBoxRows = 32;  // of the matrix: no multiples of a box
constexpr int kBytes = kBoxRows * 128, kUntouched = 0xEEEE;

enum class Mistake { none, no_fence, fence_before, no_barrier, no_wait, not_committed, same_place };

__host__ __device__ inline int element(int box, int row, int column) { return 1000 * box + 31 * row + column; }

// Stores two boxes, one after the other, from the same memory. Thread t writes 16 bytes of rows t / 8 and so on.
template <Mistake kMistake>
__global__ void __launch_bounds__(128)
    store_kernel(const __grid_constant__ ptx::TensorMap map, int column, int row, int second) {
  const uint32_t base = (ptx::smem_base() + 1023) / 1024 * 1024;
  for (int box = 0; box < 2; ++box) {
    if (kMistake == Mistake::fence_before) ptx::fence_async();
    for (int i = ptx::tid(); i < kBoxRows * 8; i += 128) {
      const int line = i / 8, piece = i % 8;
      ptx::Vec<uint16_t, 8> values;
      for (int j = 0; j < 8; ++j) values.v[j] = static_cast<uint16_t>(element(box, line, 8 * piece + j));
      ptx::st_shared(base + 128 * line + 16 * (piece ^ line % 8), values);
    }
    if (kMistake != Mistake::no_fence && kMistake != Mistake::fence_before) ptx::fence_async();
    if (kMistake != Mistake::no_barrier) ptx::sync_threads();
    if (ptx::tid() == 0) {
      ptx::store_2d(map, column, row + box * second, base);
      if (kMistake != Mistake::not_committed) ptx::store_commit();
      if (kMistake != Mistake::no_wait) ptx::store_wait_read();
    }
    ptx::sync_threads();
  }
}

template <Mistake kMistake = Mistake::none>
void store(int column, int row, int second) {
  Buffer<uint16_t> matrix(kRows * kColumns);
  const auto map = cuda::matrix_map("micro", {matrix.get(), DType::f16, kRows, kColumns, 2 * kColumns, kBoxRows});
  run(store_kernel<kMistake>, {1}, 128, 1024 + kBytes, map, column, row, second);
  for (int i = 0; i < kRows * kColumns; ++i) {
    const int y = i / kColumns, x = i % kColumns;
    int want = kUntouched;
    for (int box = 0; box < 2; ++box) {
      const int line = y - row - box * second, at = x - column;
      if (line >= 0 && line < kBoxRows && at >= 0 && at < 64) want = element(box, line, at);
    }
    expect_equal(int{matrix[i]}, want, "the matrix", i);
  }
}

void right() {
  store(0, 0, 32);     // the second box extends past the last row
  store(64, -40, 32);  // the first box lies outside
  store(128, 5, 64);   // the boxes extend past the last column, the second also past the last row
  store(-8, 3, 32);    // the boxes extend past the first column, the second also past the last row
}

#ifdef HOST_EMULATION
template <Mistake kMistake>
Check wrong(const char* name, const std::string& expected) {
  return {name,
          [expected] { reported([] { store<kMistake>(0, 0, kMistake == Mistake::same_place ? 31 : 32); }, expected); }};
}
#endif

}  // namespace micro

int main() {
  using namespace micro;
  if (!on_hopper()) return 0;
  std::vector<Check> checks = {{"boxes over every edge", right}};
#ifdef HOST_EMULATION
  checks.push_back(wrong<Mistake::no_fence>("no fence_async", "without a fence_async after it"));
  checks.push_back(wrong<Mistake::fence_before>("a fence before what is written", "without a fence_async after it"));
  checks.push_back(wrong<Mistake::no_barrier>("no barrier before the store", "reads "));
  checks.push_back(wrong<Mistake::no_wait>("memory that a store still reads", "or a store"));
  checks.push_back(wrong<Mistake::same_place>("two stores to one place", "PTX gives no order of the two"));
  checks.push_back(wrong<Mistake::not_committed>("a wait for what was not committed", "or a store"));
#endif
  return run_all(checks, 3) == 0 ? 0 : 1;
}
