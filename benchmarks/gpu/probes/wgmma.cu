// How fast the tensor cores of compute capability 9.0 multiply when nothing else holds them up, one JSON object a line:
//   nvcc -std=c++17 -gencode=arch=compute_90a,code=sm_90a benchmarks/gpu/probes/wgmma.cu -o wgmma && ./wgmma
//
// Two warpgroups a multiprocessor, m64n256k16 in bfloat16, operands in shared memory with the 128-byte swizzle; the
// same tiles again and again. A ceiling of arithmetic and power: what a kernel reaches beside it is lost to moving
// data. By values, since the clock depends on how many bits flip: uniform, the same after a ReLU (half zeros, as
// activations are), zeros.
#include <cuda_bf16.h>

#include <vector>

#include "probe.cuh"

namespace {

constexpr int kRows = 64, kColumns = 256, kDepth = 64, kGroups = 2;  // a tile of each warpgroup; a row is 128 bytes
constexpr int kBytesA = kRows * 128, kBytesB = kColumns * 128;
constexpr int kShared = kGroups * kBytesA + kBytesB + 1024;  // room to align
constexpr int kRounds = 4000;

enum class Values : int { uniform, relu, zeros, ones };

// K-major operand in rows of 128 bytes, eight rows (1024 bytes) an atom of the 128-byte swizzle.
__device__ uint64_t descriptor(uint32_t address) {
  constexpr uint64_t kLeading = 1, kStride = 1024 >> 4, kSwizzle128 = 1;
  return uint64_t(address >> 4 & 0x3fff) | kLeading << 16 | kStride << 32 | kSwizzle128 << 62;
}

__device__ void multiply(float (&d)[128], uint64_t a, uint64_t b) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
      "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
      " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
      " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
      " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
      " %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
      " %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
      " %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
      " %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
      "%128, %129, 1, 1, 1, 0, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
        "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
        "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
        "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]),
        "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]),
        "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
        "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),
        "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]), "+f"(d[64]),
        "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]), "+f"(d[72]),
        "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]), "+f"(d[80]),
        "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), "+f"(d[88]),
        "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]), "+f"(d[96]),
        "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]), "+f"(d[104]),
        "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]), "+f"(d[112]),
        "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), "+f"(d[120]),
        "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
      : "l"(a), "l"(b));
}

__device__ float value(Values values, uint32_t i) {
  uint32_t bits = i * 2654435761u;
  bits = (bits ^ bits >> 15) * 2246822519u;
  const float uniform = int32_t(bits ^ bits >> 13) * 0x1p-31f;
  switch (values) {
    case Values::uniform:
      return uniform;
    case Values::relu:
      return uniform > 0 ? uniform : 0;
    case Values::zeros:
      return 0;
    default:
      return 1;
  }
}

__global__ void __launch_bounds__(128 * kGroups, 1) products(Values values, int rounds, float* out) {
  extern __shared__ char raw[];
  const uint32_t base = (shared_address(raw) + 1023) / 1024 * 1024;  // an atom of the swizzle starts at 1024
  __nv_bfloat16* tiles = reinterpret_cast<__nv_bfloat16*>(raw + (base - shared_address(raw)));
  for (int i = threadIdx.x; i < (kGroups * kBytesA + kBytesB) / 2; i += blockDim.x) tiles[i] = value(values, i);
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");  // wgmma reads through the other proxy
  __syncthreads();
  const uint64_t a = descriptor(base + threadIdx.x / 128 * kBytesA), b = descriptor(base + kGroups * kBytesA);
  float d[128] = {};
  for (int round = 0; round < rounds; ++round) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int k = 0; k < kDepth / 16; ++k) multiply(d, a + 2 * k, b + 2 * k);  // 32 bytes further
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
  }
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 128; ++i) sum += d[i];
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

}  // namespace

int main() {
  const int blocks = multiprocessors_of_hopper("wgmma"), threads = 128 * kGroups;
  float* out;
  check(cudaMalloc(&out, sizeof(float) * blocks * threads), "malloc");
  check(cudaFuncSetAttribute(products, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared), "attribute");
  const auto run = [&](Values values, int rounds) {
    products<<<blocks, threads, kShared>>>(values, rounds, out);
    check(cudaGetLastError(), "launch");
  };
  // Ones times ones: every sum is the depth, whatever the layout.
  std::vector<float> sums(blocks * threads);
  run(Values::ones, 3);
  check(cudaMemcpy(sums.data(), out, sizeof(float) * sums.size(), cudaMemcpyDeviceToHost), "memcpy");
  for (const float sum : sums) {
    if (sum != 3.0f * kDepth * 128) {
      std::fprintf(stderr, "wgmma: a sum is %g instead of %g\n", sum, 3.0 * kDepth * 128);
      return 1;
    }
  }
  const double flops = 2.0 * blocks * kGroups * kRows * kColumns * kDepth * kRounds;
  const char* names[] = {"uniform", "relu of uniform", "zeros"};
  for (int i = 0; i < 3; ++i) {
    const double s = seconds([&] { run(static_cast<Values>(i), kRounds); });
    std::printf("{\"case\": \"wgmma m64n256k16 bfloat16, %s\", \"tflops\": %.4g}\n", names[i], flops / s * 1e-12);
  }
  check(cudaFree(out), "free");
  return 0;
}
