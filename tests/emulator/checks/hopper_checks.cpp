// The instructions of csrc/ptx/hopper.cuh: one right use of all of them, and mistakes that the emulator must report. On
// a GPU of compute capability 9.0 the right use runs with the same expectations:
//   nvcc -x cu -std=c++17 -gencode=arch=compute_90a,code=sm_90a -Icsrc -Itests/emulator
//     tests/emulator/checks/hopper_checks.cpp -o checks && ./checks
#include "cuda/base/tensor_map.h"
#include "emulator/checks/harness.h"
#include "ptx/hopper.cuh"

namespace micro {

enum class Mistake {
  none,
  no_wait,
  no_init_fence,
  no_fence,
  no_finish,
  read_early,
  inside_of_period,
  wrong_parity,
  wrong_bytes,
  another_arrival,
  overwritten,
  not_waited_for
};

constexpr int kM = 64, kOperandBytes = 64 * 128;  // 64 rows of 64 values

// One warpgroup computes D [64, N] = A B^T of 64 columns, which begin at `column` of the matrices; rows begin at `row`.
template <class T, int N, Mistake kMistake>
__global__ void __launch_bounds__(128)
    product_kernel(const __grid_constant__ ptx::TensorMap a, const __grid_constant__ ptx::TensorMap b, int column,
                   int row, float* out) {
  const uint32_t base = (ptx::smem_base() + 1023) / 1024 * 1024, at_b = base + kOperandBytes;
  const uint32_t arrival = at_b + N * 128;
  if (ptx::tid() == 0) {
    ptx::mbar_init(arrival, 1);
    if (kMistake != Mistake::no_init_fence) ptx::mbar_init_fence();
  }
  ptx::sync_threads();
  if (ptx::tid() == 0) {
    ptx::mbar_arrive_expect(arrival, kOperandBytes + N * 128 + (kMistake == Mistake::wrong_bytes ? 128 : 0));
    ptx::copy_2d(base, a, column, row, arrival);
    ptx::copy_2d(at_b, b, column, 0, arrival);
    if (kMistake == Mistake::another_arrival) {
      for (int i = 0; i < 2; ++i) ptx::mbar_arrive(arrival);
    }
  }
  if (kMistake == Mistake::not_waited_for) return;
  if (kMistake != Mistake::no_wait) ptx::mbar_wait(arrival, kMistake == Mistake::wrong_parity ? 1 : 0);
  if (kMistake == Mistake::wrong_parity) ptx::sync_threads();
  float d[N / 2];
  if (kMistake != Mistake::no_fence) ptx::wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const uint32_t shift = 32 * k + (kMistake == Mistake::inside_of_period ? 128 : 0);
    ptx::wgmma<T, N>(d, ptx::wgmma_descriptor(base + shift), ptx::wgmma_descriptor(at_b + 32 * k), k > 0);
    if (k == 1) {
      ptx::wgmma_commit();
      ptx::wgmma_wait<1>();
    }
  }
  ptx::wgmma_commit();
  if (kMistake == Mistake::overwritten && ptx::tid() == 0) ptx::copy_2d(base, a, column, row, arrival);
  if (kMistake != Mistake::no_finish && kMistake != Mistake::read_early) ptx::wgmma_finish(d);
  const int g = ptx::lane() / 4, t = ptx::lane() % 4;
  for (int i = 0; i < N / 2; ++i) {
    const int m = 16 * ptx::warp() + g + i / 2 % 2 * 8, n = i / 4 * 8 + 2 * t + i % 2;
    ptx::st_global(out + m * N + n, d[i]);
  }
  if (kMistake == Mistake::read_early) ptx::wgmma_finish(d);
}

constexpr int kRows = 70, kColumns = 136;  // no size is a multiple of a box, so boxes read zeros from outside

template <class T>
float value(int row, int column) {
  return row < 0 || row >= kRows || column < 0 || column >= kColumns
             ? 0.0f
             : static_cast<float>((row * 7 + column * 3) % 13 - 6);
}

template <class T, int N, Mistake kMistake>
void product(Buffer<float>& out, int column, int row) {
  Buffer<uint16_t> a(kRows * kColumns), b(N * kColumns);
  for (int i = 0; i < kRows * kColumns; ++i) {
    const float v = value<T>(i / kColumns, i % kColumns);
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    a[i] = ptx::is_f16<T>
               ? static_cast<uint16_t>(v == 0 ? 0 : (bits >> 16 & 0x8000) | ((bits >> 13 & 0x3fffff) - 0x1c000))
               : static_cast<uint16_t>(bits >> 16);
  }
  for (int i = 0; i < N * kColumns; ++i) b[i] = a[i % (kRows * kColumns)];
  const DType dtype = ptx::is_f16<T> ? DType::f16 : DType::bf16;
  const auto a_map = cuda::matrix_map("micro", {a.get(), dtype, kRows, kColumns, 2 * kColumns, kM});
  const auto b_map = cuda::matrix_map("micro", {b.get(), dtype, N, kColumns, 2 * kColumns, N});
  run(product_kernel<T, N, kMistake>, {1}, 128, 1024 + kOperandBytes + N * 128 + 16, a_map, b_map, column, row,
      out.get());
}

// The matrices hold small integers, so the product is exact. Columns and rows past each edge of the matrix are zeros.
template <class T, int N>
void right() {
  for (const auto& [column, row] : {std::pair{0, 0}, {64, 3}, {-8, -5}, {100, 40}}) {
    Buffer<float> out(kM * N);
    product<T, N, Mistake::none>(out, column, row);
    for (int m = 0; m < kM; ++m) {
      for (int n = 0; n < N; ++n) {
        float want = 0;
        for (int k = 0; k < 64; ++k) {
          const int c = column + k, flat = n * kColumns + c;
          const float other = c < 0 || c >= kColumns ? 0 : value<T>(flat / kColumns % kRows, flat % kColumns);
          want += value<T>(row + m, c) * other;
        }
        expect_equal(out[m * N + n], want, "D", m * N + n);
      }
    }
  }
}

#ifdef HOST_EMULATION
template <Mistake kMistake>
Check wrong(const char* name, const char* expected) {
  return {name, [expected] {
            Buffer<float> out(kM * 64);
            reported([&] { product<ptx::f16, 64, kMistake>(out, 0, 0); }, expected);
          }};
}

void early() {
  Buffer<float> out(kM * 64);
  product<ptx::f16, 64, Mistake::read_early>(out, 0, 0);
  for (int i = 0; i < kM * 64; ++i) expect(out[i] != out[i], "accumulators are NaN until they are waited for");
}

// The schedule decides whether the copies have landed by that time.
void left() {
  int noticed = 0;
  for (int seed = 0; seed < 20; ++seed) {
    emu::machine.configure(seed, -1);
    try {
      Buffer<float> out(kM * 64);
      product<ptx::f16, 64, Mistake::not_waited_for>(out, 0, 0);
    } catch (const emu::Fault& fault) {
      noticed += std::string(fault.what()).find("while a bulk copy is in flight") != std::string::npos;
    }
  }
  expect(noticed > 0, "was never noticed");
}
#endif

}  // namespace micro

int main() {
  using namespace micro;
  if (!on_hopper()) return 0;
  std::vector<Check> checks = {
      {"m64n64k16 f16", right<ptx::f16, 64>},   {"m64n64k16 bf16", right<ptx::bf16, 64>},
      {"m64n128k16 f16", right<ptx::f16, 128>}, {"m64n128k16 bf16", right<ptx::bf16, 128>},
      {"m64n256k16 f16", right<ptx::f16, 256>}, {"m64n256k16 bf16", right<ptx::bf16, 256>},
  };
#ifdef HOST_EMULATION
  checks.push_back({"accumulators read early", early});
  checks.push_back(wrong<Mistake::no_wait>("operands read before they arrived", "reads "));
  checks.push_back(wrong<Mistake::no_init_fence>("no fence after mbarrier.init", "was not fenced"));
  checks.push_back(wrong<Mistake::no_fence>("no wgmma.fence", "no wgmma.fence"));
  checks.push_back(wrong<Mistake::no_finish>("a product not waited for", "wgmma it has not waited for"));
  checks.push_back(
      wrong<Mistake::inside_of_period>("an operand at the wrong offset", "inside of the swizzle's period"));
  checks.push_back(wrong<Mistake::wrong_parity>("the wrong parity", "reads "));
  checks.push_back(
      wrong<Mistake::wrong_bytes>("more bytes expected than come", "deadlock: 128 threads wait in mbarrier"));
  checks.push_back(wrong<Mistake::another_arrival>("an arrival too many", "more arrivals than the barrier counts"));
  checks.push_back(wrong<Mistake::overwritten>("operands overwritten too early", "a product is still reading"));
  checks.push_back({"a copy in flight at the end", left});
#endif
  return run_all(checks, 3) == 0 ? 0 : 1;
}
