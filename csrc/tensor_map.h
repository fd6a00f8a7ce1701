// matrix_map(op, ...): a matrix of 16-bit values in global memory as the copy engine takes it (ptx/hopper.cuh), in
// boxes of box_rows x 64 values that lie in shared memory as rows of 128 bytes, swizzled.
//
// nvcc: encoded by the driver, whose function is looked up when first needed, so that the library loads where there is
// no driver. g++ -DHOST_EMULATION: tests/emulator/tensor_map_emulated.h. Throws std::runtime_error("<op>: ...").
#pragma once

#include "launch.h"
#include "ops.h"
#include "ptx/hopper.cuh"

namespace resnet_fused::cuda {

constexpr int kBoxColumns = 64;  // 128 bytes

struct Matrix {
  const void* data;  // aligned to 16 bytes
  DType dtype;
  int64_t rows, columns;
  int64_t row_bytes;  // from a row to the next, a multiple of 16
  int box_rows;       // at most 256
};

}  // namespace resnet_fused::cuda

#ifdef HOST_EMULATION
#include "tensor_map_emulated.h"
#else
#include <cuda.h>

namespace resnet_fused::cuda {

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                 const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                 CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

inline EncodeTiled encode_tiled(const char* op) {
  static void* found = nullptr;  // written with one value only, whoever comes first
  if (found != nullptr) return reinterpret_cast<EncodeTiled>(found);
  void* function = nullptr;
  cudaDriverEntryPointQueryResult result{};
#if CUDART_VERSION >= 12050
  check(op, "cudaGetDriverEntryPointByVersion",
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result));
#else
  check(op, "cudaGetDriverEntryPoint",
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &result));
#endif
  if (result != cudaDriverEntryPointSuccess || function == nullptr) {
    throw std::runtime_error(std::string(op) + ": the driver has no cuTensorMapEncodeTiled: it is older than CUDA 12");
  }
  return reinterpret_cast<EncodeTiled>(found = function);
}

inline ptx::TensorMap matrix_map(const char* op, const Matrix& m) {
  static_assert(sizeof(ptx::TensorMap) == sizeof(CUtensorMap), "a tensor map of the driver");
  ptx::TensorMap map{};
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(m.columns), static_cast<cuuint64_t>(m.rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(m.row_bytes)};
  const cuuint32_t box[2] = {kBoxColumns, static_cast<cuuint32_t>(m.box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const auto type = m.dtype == DType::f16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const CUresult error = encode_tiled(op)(
      reinterpret_cast<CUtensorMap*>(&map), type, 2, const_cast<void*>(m.data), sizes, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (error != CUDA_SUCCESS) {
    throw std::runtime_error(std::string(op) + ": cuTensorMapEncodeTiled refuses a matrix of " +
                             std::to_string(m.rows) + " x " + std::to_string(m.columns) + " (error " +
                             std::to_string(error) + ")");
  }
  return map;
}

}  // namespace resnet_fused::cuda
#endif
