// A tile of the plane convolution, and the way of its sums from registers to shared memory.
#pragma once

#include "cuda/base/elements.cuh"
#include "cuda/hopper/plane/plan.h"

namespace resnet_fused::cuda {

struct PlaneArgs {
  const int* table;  // as in hopper/plane/plan.h
  PlaneSchedule schedule;
  int c, k;
  Norm norm;
  bool added;  // whether there is a residual, which the copy engine loads
  Activation activation;
};

// Planes of 64 channels in the result of one pixel of a tile. With 192 channels the last 64 are a tile of their own.
__device__ __forceinline__ int plane_halves(const PlaneArgs& a, int first) {
  return first + kPlaneChannels < a.k ? kPlaneColumns / kPlaneChannels : 1;
}

struct PlaneTile {
  int first, image;  // first channel, first image
  const int *header, *records;

  __device__ __forceinline__ PlaneTile(const PlaneArgs& a, int step, int rank) {
    const PlaneSpot spot = plane_spot(a.schedule, step, rank);
    first = spot.channel, image = spot.image;
    header = a.table + spot.group * kHeaderInts;
    records = a.table + a.schedule.groups * kHeaderInts;
  }
};

// Writes mean, scale and bias of the tile's channels for the threads of one warpgroup.
__device__ __forceinline__ void plane_norm(const PlaneArgs& a, uint32_t smem, int first) {
  static_assert(kPlaneColumns == 128, "a thread for each channel");
  const int i = ptx::tid() % 128, channel = first + i;
  float mean = 0, scale = 0, bias = 0;
  if (channel < a.k) {
    mean = parameter(a.norm.mean, channel, 0.0f);
    scale = ptx::mul(parameter(a.norm.weight, channel, 1.0f), inverse_deviation(a.norm, channel));
    bias = parameter(a.norm.bias, channel, 0.0f);
  }
  ptx::st_shared(smem + 4 * i, mean);
  ptx::st_shared(smem + 4 * (kPlaneColumns + i), scale);
  ptx::st_shared(smem + 4 * (2 * kPlaneColumns + i), bias);
}

// Exchanges values among four threads. Before, each holds two columns of each of four blocks of eight columns. After,
// thread t holds the eight columns of block t and can move 16 bytes at once. v[j] holds the thread's columns of block j
// before, and columns 2 j and 2 j + 1 of its block after.
__device__ __forceinline__ void plane_transpose(float (&v)[4][2]) {
  const int t = ptx::lane() % 4;
#pragma unroll
  for (int mask = 1; mask <= 2; mask *= 2) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (j & mask) continue;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const bool upper = t & mask;
        const float got = ptx::shfl_xor(upper ? v[j][i] : v[j | mask][i], mask);
        (upper ? v[j][i] : v[j | mask][i]) = got;
      }
    }
  }
}

// Writes activation((sum - mean) * scale + bias [+ residual]) of one output pixel, in float32 and rounded once, to the
// pixel's planes, swizzled for the copy engine. A thread reads its 16 bytes of the residual from the same address and
// overwrites them.
template <class T>
__device__ __forceinline__ void plane_finish(const PlaneArgs& a, uint32_t norm, int halves, bool multiplied,
                                             const float (&sums)[kPlaneColumns / 2], const uint32_t (&planes)[2]) {
  const int row = ptx::warp() % 4 * 16 + ptx::lane() / 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int block = 0; block < kPlaneColumns / 32; ++block) {
      float v[4][2];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) v[j][i] = multiplied ? sums[4 * (4 * block + j) + 2 * half + i] : 0.0f;
      }
      plane_transpose(v);
      if (block / 2 >= halves) continue;
      const int column = 8 * (4 * block + ptx::lane() % 4);
      const int piece = 4 * (block % 2) + ptx::lane() % 4, line = row + 8 * half;
      const uint32_t place = planes[block / 2] + 128 * line + 16 * (piece ^ line % 8);
      Elements<T, 8> residual{}, result;
      if (a.added) residual = ptx::ld_shared<Elements<T, 8>>(place);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const auto mean = ptx::ld_shared<ptx::Vec<float, 2>>(norm + 4 * (column + 2 * j));
        const auto scale = ptx::ld_shared<ptx::Vec<float, 2>>(norm + 4 * (kPlaneColumns + column + 2 * j));
        const auto bias = ptx::ld_shared<ptx::Vec<float, 2>>(norm + 4 * (2 * kPlaneColumns + column + 2 * j));
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float y = ptx::fma(ptx::add(v[j][i], -mean.v[i]), scale.v[i], bias.v[i]);
          if (a.added) y = ptx::add(y, ptx::to_float(residual.v[2 * j + i]));
          result.v[2 * j + i] = ptx::from_float<T>(activate(y, a.activation));
        }
      }
      ptx::st_shared(place, result);
    }
  }
}

}  // namespace resnet_fused::cuda
