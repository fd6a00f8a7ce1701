// Compares the emulator's fragment layouts with NVIDIA's own. CuTe's traits say which lane holds which element, and the
// emulated instructions must agree. Without this check the emulator would be tested only against its author's reading.
// It is host code and needs the headers of CUTLASS and CUDA.
#include <cute/atom/copy_traits_sm75.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
// CUDA's headers define these macros for host compilers. The emulator defines them as empty too.
#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__

#include "emulator/checks/harness.h"

namespace micro {

// D = A B by the emulated mma. CuTe's layouts fill the registers and read them back. The values are small integers, so
// D is exact.
template <class Traits, class T>
struct Mma {
  static constexpr int M = cute::size<0>(typename Traits::Shape_MNK{}), N = cute::size<1>(typename Traits::Shape_MNK{}),
                       K = cute::size<2>(typename Traits::Shape_MNK{});
  static constexpr int kA = cute::size<1>(typename Traits::ALayout{}), kB = cute::size<1>(typename Traits::BLayout{}),
                       kC = cute::size<1>(typename Traits::CLayout{});

  static float a(int m, int k) { return static_cast<float>((m * 7 + k * 3) % 13 - 6); }
  static float b(int n, int k) { return static_cast<float>((n * 5 + k * 11) % 17 - 8); }

  // The registers of one lane from its values: two 16-bit values or one TF32 value in each register.
  template <int kRegisters, int kValues>
  static void registers(const float (&value)[kValues], uint32_t (&r)[kRegisters]) {
    for (int i = 0; i < kRegisters; ++i) {
      if constexpr (kRegisters == kValues) {
        r[i] = ptx::to_tf32(value[i]);
      } else {
        r[i] = ptx::pack<T>(value[2 * i], value[2 * i + 1]);
      }
    }
  }

  static void kernel(float* d) {
    const int l = ptx::lane();
    float va[kA], vb[kB], acc[4] = {};
    for (int i = 0; i < kA; ++i) {
      const int at = typename Traits::ALayout{}(l, i);  // CuTe numbers (m, k) by m + k * M
      va[i] = a(at % M, at / M);
    }
    for (int i = 0; i < kB; ++i) {
      const int at = typename Traits::BLayout{}(l, i);
      vb[i] = b(at % N, at / N);
    }
    uint32_t ra[4], rb[2];
    registers(va, ra);
    registers(vb, rb);
    if constexpr (sizeof(T) == 4) {
      ptx::mma_m16n8k8_tf32(acc, ra, rb);
    } else {
      ptx::mma_m16n8k16<T>(acc, ra, rb);
    }
    for (int i = 0; i < kC; ++i) {
      const int at = typename Traits::CLayout{}(l, i);
      d[at % M * N + at / M] = acc[i];
    }
  }

  static void check() {
    static_assert(kC == 4, "four accumulators");
    Buffer<float> d(M * N);
    run(kernel, {1}, 32, 0, d.get());
    for (int m = 0; m < M; ++m) {
      for (int n = 0; n < N; ++n) {
        float want = 0;
        for (int k = 0; k < K; ++k) want += a(m, k) * b(n, k);
        expect_equal(d[m * N + n], want, "D", m * N + n);
      }
    }
  }
};

// Every 16-bit element holds the number that CuTe's source layout gives it. Each lane must receive the numbers that
// CuTe's destination layout names.
template <class Traits, int kMatrices, bool kTransposed>
struct Load {
  static void kernel(uint32_t* out) {
    const int l = ptx::lane();
    const uint32_t row = ptx::smem_base() + 16 * (l % (8 * kMatrices));
    if (l < 8 * kMatrices) {
      for (int e = 0; e < 8; ++e) {
        ptx::st_shared(row + 2 * e, static_cast<uint16_t>(typename Traits::SrcLayout{}(l, 16 * e) / 16));
      }
    }
    ptx::sync_warp();
    uint32_t r[kMatrices];
    if constexpr (kMatrices == 4) {
      kTransposed ? ptx::ldmatrix_x4_trans(r, row) : ptx::ldmatrix_x4(r, row);
    } else {
      kTransposed ? ptx::ldmatrix_x2_trans(r, row) : ptx::ldmatrix_x2(r, row);
    }
    for (int i = 0; i < kMatrices; ++i) out[l * kMatrices + i] = r[i];
  }

  static void check() {
    Buffer<uint32_t> out(32 * kMatrices);
    run(kernel, {1}, 32, 128 * kMatrices, out.get());
    for (int l = 0; l < 32; ++l) {
      for (int i = 0; i < kMatrices; ++i) {
        const uint32_t lo = typename Traits::DstLayout{}(l, 32 * i) / 16;
        const uint32_t hi = typename Traits::DstLayout{}(l, 32 * i + 16) / 16;
        expect_equal(out[l * kMatrices + i], lo | hi << 16, "register", l * kMatrices + i);
      }
    }
  }
};

}  // namespace micro

int main() {
  using namespace micro;
  using namespace cute;
  return run_all({{"mma f16", Mma<MMA_Traits<SM80_16x8x16_F32F16F16F32_TN>, ptx::f16>::check},
                  {"mma bf16", Mma<MMA_Traits<SM80_16x8x16_F32BF16BF16F32_TN>, ptx::bf16>::check},
                  {"mma tf32", Mma<MMA_Traits<SM80_16x8x8_F32TF32TF32F32_TN>, float>::check},
                  {"ldmatrix.x4", Load<Copy_Traits<SM75_U32x4_LDSM_N>, 4, false>::check},
                  {"ldmatrix.x4.trans", Load<Copy_Traits<SM75_U16x8_LDSM_T>, 4, true>::check},
                  {"ldmatrix.x2", Load<Copy_Traits<SM75_U32x2_LDSM_N>, 2, false>::check},
                  {"ldmatrix.x2.trans", Load<Copy_Traits<SM75_U16x4_LDSM_T>, 2, true>::check}},
                 1) == 0
             ? 0
             : 1;
}
