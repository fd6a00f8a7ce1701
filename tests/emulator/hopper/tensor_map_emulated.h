// matrix_map() and images_map() of csrc/cuda/base/tensor_map.h on the emulator. They refuse what the driver refuses.
#pragma once

#include <cstring>

#include "emulator/core/machine.h"

namespace resnet_fused::cuda {

inline ptx::TensorMap encoded(const char* op, const emu::BoxMap& map, DType dtype) {
  const auto require = [op](bool good, const char* what) {
    if (!good) throw std::runtime_error(std::string(op) + ": tensor map: " + what);
  };
  constexpr int64_t kMost = int64_t{1} << 32;
  require(reinterpret_cast<uintptr_t>(map.data) % 16 == 0, "the data are not aligned to 16 bytes");
  require(dtype != DType::f32, "16-bit values only");
  for (int i = 0; i < emu::kBoxRank; ++i) {
    require(map.size[i] > 0 && map.size[i] <= kMost, "sizes are 1 to 2^32");
    require(map.box[i] > 0 && map.box[i] <= 256, "a box has 1 to 256 rows");
    require(i == 0 || (map.stride[i] % 16 == 0 && map.stride[i] < int64_t{1} << 40),
            "a row is a multiple of 16 bytes, below 2^40");
  }
  ptx::TensorMap result{};
  static_assert(sizeof map <= sizeof result, "the emulator's map fits");
  std::memcpy(&result, &map, sizeof map);
  return result;
}

inline ptx::TensorMap matrix_map(const char* op, const Matrix& m) {
  return encoded(op, {m.data, {m.columns, m.rows, 1, 1}, {2, m.row_bytes, 0, 0}, {kBoxColumns, m.box_rows, 1, 1}, 2},
                 m.dtype);
}

inline ptx::TensorMap images_map(const char* op, const Images& m) {
  return encoded(op,
                 {m.data,
                  {m.c, m.n, m.w, m.h},
                  {2, 2 * m.c * m.w * m.h, 2 * m.c, 2 * m.c * m.w},
                  {kBoxColumns, m.box_images, m.box_pixels, 1},
                  4},
                 m.dtype);
}

}  // namespace resnet_fused::cuda
