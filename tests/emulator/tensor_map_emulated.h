// matrix_map() of csrc/tensor_map.h on the emulator: refuses what the driver refuses.
#pragma once

#include <cstring>

#include "machine.h"

namespace resnet_fused::cuda {

inline ptx::TensorMap matrix_map(const char* op, const Matrix& m) {
  const auto require = [op](bool good, const char* what) {
    if (!good) throw std::runtime_error(std::string(op) + ": tensor map: " + what);
  };
  constexpr int64_t kMost = int64_t{1} << 32;
  require(reinterpret_cast<uintptr_t>(m.data) % 16 == 0, "the data are not aligned to 16 bytes");
  require(m.dtype != DType::f32, "16-bit values only");
  require(m.rows > 0 && m.columns > 0 && m.rows <= kMost && m.columns <= kMost, "sizes are 1 to 2^32");
  require(m.row_bytes % 16 == 0 && m.row_bytes < int64_t{1} << 40, "a row is a multiple of 16 bytes, below 2^40");
  require(m.box_rows > 0 && m.box_rows <= 256, "a box has 1 to 256 rows");
  const emu::MatrixMap map{static_cast<const unsigned char*>(m.data), m.rows, m.columns, m.row_bytes, m.box_rows,
                           kBoxColumns, 2};
  ptx::TensorMap result{};
  std::memcpy(&result, &map, sizeof map);
  return result;
}

}  // namespace resnet_fused::cuda
