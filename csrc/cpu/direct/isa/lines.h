// Code that the kernels on vectors and on the matrix unit share: copies of pixels into lines, and outputs from sums.
#pragma once

#include <cstdint>
#include <cstring>

#include "cpu/base/pointwise_vec.h"
#include "cpu/direct/isa/kernels.h"

namespace resnet_fused::cpu::RESNET_FUSED_ISA {

template <class T>
void pack_lines(const void* from, int64_t from_stride, int64_t pixels, int64_t channels, uint16_t* to,
                int64_t block_stride, int64_t) {
  constexpr int64_t kBlock = 64 / sizeof(T);
  for (int64_t pixel = 0; pixel < pixels; ++pixel, to += kDirectLine) {
    const T* values = static_cast<const T*>(from) + pixel * from_stride;
    int64_t c = 0;
    uint16_t* block = to;
    for (; c + kBlock <= channels; c += kBlock, block += block_stride) std::memcpy(block, values + c, 64);
    if (c == channels) continue;
    std::memset(block, 0, 64);
    std::memcpy(block, values + c, (channels - c) * sizeof(T));
  }
}

template <class T>
void direct_output(const DirectOutput& o) {
  for (int lane = 0; lane < o.channels; lane += kWidth) {
    const int lanes = o.channels - lane < kWidth ? o.channels - lane : kWidth;
    const bool whole = lanes == kWidth;
    const Vec shift = whole ? load(o.shift + lane) : load(o.shift + lane, lanes);
    T* out = static_cast<T*>(o.out) + lane;
    const T* residual = o.residual ? static_cast<const T*>(o.residual) + lane : nullptr;
    for (int64_t pixel = 0; pixel < o.pixels; ++pixel, out += o.pixel_stride) {
      Vec value = load(o.c + pixel * kDirectPanel + lane) + shift;
      if (residual) {
        value += whole ? load(residual) : load(residual, lanes);
        residual += o.pixel_stride;
      }
      value = pointwise(value, o.activation);
      if (whole) {
        store(out, value);
      } else {
        store(out, value, lanes);
      }
    }
  }
}

}  // namespace resnet_fused::cpu::RESNET_FUSED_ISA
