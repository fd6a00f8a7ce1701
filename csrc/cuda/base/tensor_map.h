// matrix_map(op, ...) describes a matrix of 16-bit values in global memory to the copy engine (ptx/hopper.cuh). A box
// is box_rows x 64 values; in shared memory its rows have 128 bytes and are swizzled.
// images_map(op, ...) describes NHWC images. A box is one line of pixels with the images innermost: a pixel of eight
// images is one period of the swizzle, so a product may begin at any pixel of the line.
//
// nvcc: the driver encodes the map. The driver's function is looked up at its first use, so the library also loads
// where there is no driver. g++ -DHOST_EMULATION: tests/emulator/hopper/tensor_map_emulated.h. Both functions throw
// std::runtime_error("<op>: ...").
#pragma once

#include "cuda/base/launch.h"
#include "ops.h"
#include "ptx/hopper.cuh"

namespace resnet_fused::cuda {

constexpr int kBoxColumns = 64;  // 128 bytes

struct Matrix {
  const void* data;  // aligned to 16 bytes
  DType dtype;
  int64_t rows, columns;
  int64_t row_bytes;  // distance of two rows, a multiple of 16
  int box_rows;       // at most 256
};

// Sizes of the images and of a box.
struct Images {
  const void* data;  // [n, h, w, c], aligned to 16 bytes; c is a multiple of 8
  DType dtype;
  int64_t n, h, w, c;
  int box_images, box_pixels;
};

}  // namespace resnet_fused::cuda

#ifdef HOST_EMULATION
#include "emulator/hopper/tensor_map_emulated.h"
#else
#include <cuda.h>

namespace resnet_fused::cuda {

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                 const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                 CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

inline EncodeTiled find_encode_tiled(const char* op) {
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
  return reinterpret_cast<EncodeTiled>(function);
}

// sizes and box: innermost first. strides: bytes, of all dimensions except the innermost.
template <int Rank>
ptx::TensorMap encoded(const char* op, const void* data, DType dtype, const cuuint64_t (&sizes)[Rank],
                       const cuuint64_t (&strides)[Rank - 1], const cuuint32_t (&box)[Rank]) {
  static_assert(sizeof(ptx::TensorMap) == sizeof(CUtensorMap), "a tensor map of the driver");
  ptx::TensorMap map{};
  cuuint32_t steps[Rank];
  for (cuuint32_t& step : steps) step = 1;
  const auto type = dtype == DType::f16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  static const EncodeTiled encode_tiled = find_encode_tiled(op);  // after an error the next call looks again
  const auto encode = [&] {
    return encode_tiled(reinterpret_cast<CUtensorMap*>(&map), type, Rank, const_cast<void*>(data), sizes, strides, box,
                        steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                        CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  };
  CUresult error = encode();
  if (error == CUDA_ERROR_INVALID_CONTEXT) {
    // The driver's function needs a context. A thread that has called only the runtime may have none yet: torch's guard
    // does not set a device that is current already, as device 0 is in every new thread.
    int device = 0;
    check(op, "cudaGetDevice", cudaGetDevice(&device));
    check(op, "cudaSetDevice", cudaSetDevice(device));
    error = encode();
  }
  if (error == CUDA_SUCCESS) return map;
  std::string shape = std::to_string(sizes[Rank - 1]);
  for (int i = Rank - 2; i >= 0; --i) shape += " x " + std::to_string(sizes[i]);
  throw std::runtime_error(std::string(op) + ": cuTensorMapEncodeTiled refuses a tensor of " + shape + " (error " +
                           std::to_string(error) + ")");
}

inline ptx::TensorMap matrix_map(const char* op, const Matrix& m) {
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(m.columns), static_cast<cuuint64_t>(m.rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(m.row_bytes)};
  const cuuint32_t box[2] = {kBoxColumns, static_cast<cuuint32_t>(m.box_rows)};
  return encoded<2>(op, m.data, m.dtype, sizes, strides, box);
}

inline ptx::TensorMap images_map(const char* op, const Images& m) {
  const auto size = [](int64_t v) { return static_cast<cuuint64_t>(v); };
  const cuuint64_t sizes[4] = {size(m.c), size(m.n), size(m.w), size(m.h)};
  const cuuint64_t strides[3] = {size(2 * m.c * m.w * m.h), size(2 * m.c), size(2 * m.c * m.w)};
  const cuuint32_t box[4] = {kBoxColumns, static_cast<cuuint32_t>(m.box_images), static_cast<cuuint32_t>(m.box_pixels),
                             1};
  return encoded<4>(op, m.data, m.dtype, sizes, strides, box);
}

}  // namespace resnet_fused::cuda
#endif
