// One right use of each instruction in csrc/ptx/ptx.cuh, whose result is known from the PTX ISA.
//
// g++ -DHOST_EMULATION checks the emulator. nvcc -x cu checks the inline PTX on a GPU with the same expectations.
// faults.cpp has the wrong uses.
#include "emulator/checks/harness.h"
#include "emulator/core/numbers.h"

namespace micro {

__global__ void indices(int* out) {
  const int block = (ptx::bid_z() * ptx::grid_y() + ptx::bid_y()) * ptx::grid_x() + ptx::bid_x();
  const int thread = block * ptx::threads() + ptx::tid();
  out[thread] = thread + (ptx::bid_x_again() - ptx::bid_x()) + (ptx::warp() * 32 + ptx::lane() - ptx::tid()) +
                1000 * (ptx::grid_z() - 2);
}
void check_indices() {
  Buffer<int> out(64 * 24);
  run(indices, {4, 3, 2}, 64, 0, out.get());
  for (size_t i = 0; i < out.size(); ++i) expect_equal(out[i], static_cast<int>(i), "index", i);
}

// Each thread writes its slot and reads the mirrored slot.
template <class T>
__global__ void mirror(const T* in, T* out) {
  const uint32_t base = ptx::smem_base();
  ptx::st_shared(base + ptx::tid() * sizeof(T), ptx::ld_global<T>(in + ptx::tid()));
  ptx::sync_threads();
  const int other = ptx::threads() - 1 - ptx::tid();
  const T value = ptx::ld_shared<T>(base + other * sizeof(T));
  switch (ptx::tid() % 3) {  // these loads and stores differ in caching only
    case 0:
      ptx::st_global(out + ptx::tid(), value);
      break;
    case 1:
      ptx::st_global_stream(out + ptx::tid(), ptx::ld_global_nc<T>(in + other));
      break;
    default:
      ptx::st_global(out + ptx::tid(), ptx::ld_global_stream<T>(in + other));
  }
}
template <class T>
void check_mirror() {
  Buffer<T> in(128), out(128);
  for (size_t i = 0; i < 128 * sizeof(T); ++i) reinterpret_cast<unsigned char*>(in.get())[i] = (i * 7 + i / 256) & 255;
  run(mirror<T>, {1}, 128, 128 * sizeof(T), in.get(), out.get());
  for (size_t i = 0; i < 128; ++i)
    expect(std::memcmp(&out[i], &in[127 - i], sizeof(T)) == 0, "mirror " + std::to_string(i));
}

__global__ void base_alignment(uint32_t* out) { *out = ptx::smem_base() % 128; }
void check_base_alignment() {
  Buffer<uint32_t> out(1);
  run(base_alignment, {1}, 32, 4096, out.get());
  expect_equal(out[0], 0u, "smem_base() % 128", 0);
}

// Lane t copies t % 17 of 16 bytes, t % 9 of 8, t % 5 of 4; the rest must become zero. Three groups are waited for one
// by one.
__global__ void copies(const unsigned char* in, unsigned char* out) {
  const int t = ptx::tid(), n = ptx::threads();
  const uint32_t base = ptx::smem_base(), a = base + 16 * t, b = base + 16 * n + 8 * t, c = base + 24 * n + 4 * t;
  ptx::cp_async16(a, in + 16 * t, t % 17);
  ptx::cp_async_commit();
  ptx::cp_async<8>(b, in + 16 * n + 8 * t, t % 9);
  ptx::cp_async_commit();
  ptx::cp_async<4>(c, in + 24 * n + 4 * t, t % 5);
  ptx::cp_async_commit();
  ptx::cp_async_wait<2>();
  ptx::st_global(out + 16 * t, ptx::ld_shared<ptx::Words4>(a));  // a thread sees its own copies without a barrier
  ptx::cp_async_wait<1>();
  ptx::sync_threads();
  const int other = n - 1 - t;
  ptx::st_global(out + 16 * n + 8 * other, ptx::ld_shared<ptx::Words2>(base + 16 * n + 8 * other));
  ptx::cp_async_wait<0>();
  ptx::sync_threads();
  ptx::st_global(out + 24 * n + 4 * other, ptx::ld_shared<uint32_t>(base + 24 * n + 4 * other));
}
void check_copies() {
  const int n = 64;
  Buffer<unsigned char> in(28 * n), out(28 * n);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<unsigned char>(i * 11 + 3) | 1;
  run(copies, {1}, n, 28 * n, in.get(), out.get());
  for (int i = 0; i < 28 * n; ++i) {
    const int size = i < 16 * n ? 16 : i < 24 * n ? 8 : 4, start = i < 16 * n ? 0 : i < 24 * n ? 16 * n : 24 * n;
    const int t = (i - start) / size, kept = t % (size + 1);
    const int want = (i - start) % size < kept ? in[i] : 0;
    expect_equal(static_cast<int>(out[i]), want, "copied byte", i);
  }
}

// Matrices of 16-bit values m * 64 + row * 8 + column, stored row by row.
template <int Matrices, bool Transposed>
__global__ void load_matrices(uint32_t* out) {
  const uint32_t base = ptx::smem_base();
  for (int i = ptx::lane(); i < Matrices * 64; i += 32) ptx::st_shared(base + 2 * i, static_cast<uint16_t>(i));
  ptx::sync_warp();
  const uint32_t row = base + 16 * (ptx::lane() % (8 * Matrices));
  uint32_t r[Matrices];
  if constexpr (Matrices == 4) {
    Transposed ? ptx::ldmatrix_x4_trans(r, row) : ptx::ldmatrix_x4(r, row);
  } else {
    Transposed ? ptx::ldmatrix_x2_trans(r, row) : ptx::ldmatrix_x2(r, row);
  }
  for (int m = 0; m < Matrices; ++m) out[ptx::lane() * Matrices + m] = r[m];
}
template <int Matrices, bool Transposed>
void check_load_matrices() {
  Buffer<uint32_t> out(32 * Matrices);
  run(load_matrices<Matrices, Transposed>, {1}, 32, Matrices * 128, out.get());
  for (int l = 0; l < 32; ++l) {
    for (int m = 0; m < Matrices; ++m) {
      const int row = l / 4, column = l % 4 * 2;
      const uint32_t first = m * 64 + (Transposed ? column * 8 + row : row * 8 + column);
      const uint32_t second = first + (Transposed ? 8 : 1);
      expect_equal(out[l * Matrices + m], first | second << 16, "ldmatrix", l * Matrices + m);
    }
  }
}

// D = A B + C on small integers, which is exact in every format and order of summation. A [16, K] and B [K, 8] are
// stored row by row.
template <class T>
__global__ void multiply(const float* a, const float* b, float* d) {
  const int g = ptx::lane() / 4, t = ptx::lane() % 4;
  float acc[4];
  for (int i = 0; i < 4; ++i) acc[i] = d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2];
  uint32_t ra[4], rb[2];
  if constexpr (sizeof(T) == 4) {
    for (int i = 0; i < 4; ++i) ra[i] = ptx::to_tf32(a[(g + 8 * (i % 2)) * 8 + t + 4 * (i / 2)]);
    for (int i = 0; i < 2; ++i) rb[i] = ptx::to_tf32(b[(t + 4 * i) * 8 + g]);
    ptx::mma_m16n8k8_tf32(acc, ra, rb);
  } else {
    for (int i = 0; i < 4; ++i) {
      const float* p = a + (g + 8 * (i % 2)) * 16 + 2 * t + 8 * (i / 2);
      ra[i] = ptx::pack<T>(p[0], p[1]);
    }
    for (int i = 0; i < 2; ++i) rb[i] = ptx::pack<T>(b[(2 * t + 8 * i) * 8 + g], b[(2 * t + 8 * i + 1) * 8 + g]);
    ptx::mma_m16n8k16<T>(acc, ra, rb);
  }
  for (int i = 0; i < 4; ++i) d[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = acc[i];
}
template <class T>
void check_multiply() {
  constexpr int K = sizeof(T) == 4 ? 8 : 16;
  Buffer<float> a(16 * K), b(K * 8), d(128);
  for (int i = 0; i < 16 * K; ++i) a[i] = static_cast<float>((i * 37 + i / 5) % 17 - 8);
  for (int i = 0; i < K * 8; ++i) b[i] = static_cast<float>((i * 29 + i / 3) % 13 - 6);
  std::vector<float> want(128);
  for (int i = 0; i < 128; ++i) {
    d[i] = static_cast<float>(i - 50);
    want[i] = d[i];
    for (int k = 0; k < K; ++k) want[i] += a[i / 8 * K + k] * b[k * 8 + i % 8];
  }
  run(multiply<T>, {1}, 32, 0, a.get(), b.get(), d.get());
  for (int i = 0; i < 128; ++i) expect_equal(d[i], want[i], "mma", i);
}

// Warps 0-1 and 2-3 reverse their half behind barriers 1 and 2; then warps 0-1 hand data to 2-3 by arrive and sync.
__global__ void named_barriers(int* out) {
  const int t = ptx::tid(), half = t / 64;
  const uint32_t base = ptx::smem_base();
  ptx::st_shared(base + 4 * t, t);
  ptx::bar_sync(1 + half, 64);
  out[t] = ptx::ld_shared<int>(base + 4 * (half * 64 + 63 - t % 64));
  if (half == 0) {
    ptx::st_shared(base + 512 + 4 * t, 100 + t);
    ptx::bar_arrive(3, 128);
  } else {
    ptx::bar_sync(3, 128);
    out[128 + t % 64] = ptx::ld_shared<int>(base + 512 + 4 * (t % 64));
  }
}
void check_named_barriers() {
  Buffer<int> out(192);
  run(named_barriers, {1}, 128, 512 + 256, out.get());
  for (int t = 0; t < 128; ++t) expect_equal(out[t], t / 64 * 64 + 63 - t % 64, "bar.sync", t);
  for (int t = 0; t < 64; ++t) expect_equal(out[128 + t], 100 + t, "bar.arrive", t);
}

__global__ void shuffles(int* out) {
  const int l = ptx::lane();
  out[l] = ptx::shfl_xor(l, 5);
  out[32 + l] = ptx::shfl_down(l, 3);
  out[64 + l] = ptx::shfl_idx(l, l / 2);
}
void check_shuffles() {
  Buffer<int> out(96);
  run(shuffles, {1}, 32, 0, out.get());
  for (int l = 0; l < 32; ++l) {
    expect_equal(out[l], l ^ 5, "shfl.xor", l);
    expect_equal(out[32 + l], l + 3 < 32 ? l + 3 : l, "shfl.down", l);
    expect_equal(out[64 + l], l / 2, "shfl.idx", l);
  }
}

// Values around every rounding decision: all 16-bit patterns as float32, and their neighbours at and off the ties.
std::vector<float> number_samples() {
  std::vector<float> x;
  for (uint32_t h = 0; h < 65536; h += 3) {
    for (float v : {emu::widen_f16(static_cast<uint16_t>(h)), emu::widen_bf16(static_cast<uint16_t>(h))}) {
      const uint32_t u = emu::bits_of(v);
      for (uint32_t d : {0u, 1u, 0xfffu, 0x1000u, 0x1001u, 0x7fffu, 0x8000u, 0x8001u})
        x.push_back(emu::float_of(u + d));
    }
  }
  return x;
}
__global__ void narrow(const float* x, uint32_t* out, int n) {
  for (int i = ptx::bid_x() * ptx::threads() + ptx::tid(); i < n; i += ptx::grid_x() * ptx::threads()) {
    const float lo = x[i], hi = x[n - 1 - i];
    out[6 * i] = ptx::from_float<ptx::f16>(lo).bits | static_cast<uint32_t>(ptx::from_float<ptx::bf16>(lo).bits) << 16;
    out[6 * i + 1] = ptx::pack<ptx::f16>(lo, hi);
    out[6 * i + 2] = ptx::pack<ptx::bf16>(lo, hi);
    out[6 * i + 3] = ptx::to_tf32(lo);
    float a, b;
    ptx::unpack<ptx::f16>(ptx::pack<ptx::f16>(lo, hi), a, b);
    out[6 * i + 4] = ptx::bit_cast<uint32_t>(a) ^ ptx::bit_cast<uint32_t>(b);
    out[6 * i + 5] = ptx::bit_cast<uint32_t>(ptx::to_float(ptx::from_float<ptx::bf16>(lo)));
  }
}
void check_narrow() {
  const std::vector<float> samples = number_samples();
  const int n = static_cast<int>(samples.size());
  Buffer<float> x(n);
  Buffer<uint32_t> out(6 * n);
  std::memcpy(x.get(), samples.data(), n * sizeof(float));
  run(narrow, {2}, 128, 0, x.get(), out.get(), n);
  for (int i = 0; i < n; ++i) {
    const float lo = x[i], hi = x[n - 1 - i];
    const uint32_t f16 = emu::narrow_f16(lo), f16_hi = emu::narrow_f16(hi), bf16 = emu::narrow_bf16(lo);
    expect_equal(out[6 * i], f16 | bf16 << 16, "cvt", i);
    expect_equal(out[6 * i + 1], f16 | f16_hi << 16, "cvt.f16x2", i);
    expect_equal(out[6 * i + 2], bf16 | static_cast<uint32_t>(emu::narrow_bf16(hi)) << 16, "cvt.bf16x2", i);
    if (lo == lo) expect_equal(out[6 * i + 3] & 0xffffe000u, emu::round_tf32(lo) & 0xffffe000u, "cvt.rna.tf32", i);
    const float a = emu::widen_f16(static_cast<uint16_t>(f16)), b = emu::widen_f16(static_cast<uint16_t>(f16_hi));
    if (a == a && b == b) expect_equal(out[6 * i + 4], emu::bits_of(a) ^ emu::bits_of(b), "cvt.f32.f16", i);
    if (lo == lo) expect_equal(out[6 * i + 5], bf16 << 16, "cvt.f32.bf16", i);
  }
}

__global__ void arithmetic(const float* x, float* out) {
  const int t = ptx::tid();
  const float a = x[t], b = x[(t + 7) % 128], c = x[(t + 31) % 128];
  out[5 * t] = ptx::fma(a, b, c);
  out[5 * t + 1] = ptx::add(ptx::mul(a, b), c);  // two roundings: must not be contracted
  out[5 * t + 2] = ptx::div(a, b);
  out[5 * t + 3] = ptx::sqrt(a);
  out[5 * t + 4] = ptx::div(1.0f, ptx::sqrt(b));
}
void check_arithmetic() {
  Buffer<float> x(128), out(640);
  for (int i = 0; i < 128; ++i) x[i] = std::exp(0.37f * static_cast<float>(i % 40)) / (1.0f + static_cast<float>(i));
  run(arithmetic, {1}, 128, 0, x.get(), out.get());
  for (int t = 0; t < 128; ++t) {
    const float a = x[t], b = x[(t + 7) % 128], c = x[(t + 31) % 128];
    volatile float product = a * b;
    const float want[5] = {std::fma(a, b, c), product + c, a / b, std::sqrt(a), 1.0f / std::sqrt(b)};
    for (int i = 0; i < 5; ++i) expect_equal(out[5 * t + i], want[i], "arithmetic", 5 * t + i);
  }
}

}  // namespace micro

int main() {
  using namespace micro;
  return run_all({{"indices", check_indices},
                  {"shared and global, 2 bytes", check_mirror<uint16_t>},
                  {"shared and global, 4 bytes", check_mirror<uint32_t>},
                  {"shared and global, 8 bytes", check_mirror<ptx::Words2>},
                  {"shared and global, 16 bytes", check_mirror<ptx::Words4>},
                  {"smem_base", check_base_alignment},
                  {"cp.async", check_copies},
                  {"ldmatrix.x4", check_load_matrices<4, false>},
                  {"ldmatrix.x4.trans", check_load_matrices<4, true>},
                  {"ldmatrix.x2", check_load_matrices<2, false>},
                  {"ldmatrix.x2.trans", check_load_matrices<2, true>},
                  {"mma f16", check_multiply<ptx::f16>},
                  {"mma bf16", check_multiply<ptx::bf16>},
                  {"mma tf32", check_multiply<float>},
                  {"named barriers", check_named_barriers},
                  {"shuffles", check_shuffles},
                  {"conversions", check_narrow},
                  {"arithmetic", check_arithmetic}},
                 5) == 0
             ? 0
             : 1;
}
