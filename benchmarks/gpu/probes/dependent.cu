// What a kernel costs that needs the one before it, one JSON object a line:
//   nvcc -std=c++17 -gencode=arch=compute_90a,code=sm_90a benchmarks/gpu/probes/dependent.cu -o dependent && ./dependent
//
// A chain of tiny kernels, each one block a multiprocessor, each adding one to a counter of its block: seconds per
// kernel, launched and in a CUDA graph, plain and with programmatic dependent launch (the next kernel starts while this
// one runs, and waits for its data). The difference is what a network of short kernels could save per layer; the
// counters tell whether the order held.
#include <vector>

#include "probe.cuh"

namespace {

constexpr int kChain = 500, kThreads = 128;

template <bool Early>
__global__ void add_one(int* counters, int shift) {
  if constexpr (Early) {
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");  // until the kernel before has ended and its writes are seen
  }
  if (threadIdx.x == 0) {
    volatile int* mine = counters + (blockIdx.x + shift) % gridDim.x;  // which another block of the kernel before wrote
    const int value = *mine;
    __syncwarp(1);
    *mine = value + 1;
  }
}

template <bool Early>
void chain(int* counters, int blocks, cudaStream_t stream) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks), config.blockDim = dim3(kThreads), config.stream = stream;
  config.attrs = &attribute, config.numAttrs = Early ? 1 : 0;
  for (int i = 0; i < kChain; ++i) check(cudaLaunchKernelEx(&config, add_one<Early>, counters, i), "launch");
}

template <bool Early>
void measure(const char* name, int* counters, int blocks, cudaStream_t stream) {
  check(cudaMemset(counters, 0, sizeof(int) * blocks), "memset");
  check(cudaDeviceSynchronize(), "memset");
  const double launched = seconds([&] { chain<Early>(counters, blocks, stream); }, stream);
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
  chain<Early>(counters, blocks, stream);
  check(cudaStreamEndCapture(stream, &graph), "capture");
  check(cudaGraphInstantiate(&ready, graph, 0), "instantiate");
  const double replayed = seconds([&] { check(cudaGraphLaunch(ready, stream), "graph"); }, stream);
  std::vector<int> counts(blocks);
  check(cudaMemcpy(counts.data(), counters, sizeof(int) * blocks, cudaMemcpyDeviceToHost), "memcpy");
  for (const int count : counts) {
    if (count != 12 * kChain) {  // six times each
      std::fprintf(stderr, "%s: a counter is %d instead of %d\n", name, count, 12 * kChain);
      std::exit(1);
    }
  }
  std::printf("{\"case\": \"dependent kernels, %s\", \"launched\": %.4g, \"graph\": %.4g}\n", name, launched / kChain,
              replayed / kChain);
  check(cudaGraphExecDestroy(ready), "destroy"), check(cudaGraphDestroy(graph), "destroy");
}

}  // namespace

int main() {
  const int blocks = multiprocessors_of_hopper("dependent kernels");
  int* counters;
  cudaStream_t stream;
  check(cudaMalloc(&counters, sizeof(int) * blocks), "malloc");
  check(cudaStreamCreate(&stream), "stream");
  measure<false>("one after the other", counters, blocks, stream);
  measure<true>("programmatic launch", counters, blocks, stream);
  check(cudaFree(counters), "free");
  return 0;
}
