// How the threads of a grid share an activation [outer, channels, inner], and how each thread moves through its part.
//
// A thread keeps the same channels, so their parameters stay in registers. It moves by vectors of N elements:
//   columns (inner == 1): block.x is a tile of up to 32 vectors of channels. A thread holds N channels and walks rows.
//   planes  (inner > 1):  block.x is one channel. Its threads walk the (outer, inner) positions of that channel.
// block.y is a chunk. The chunks take positions in turn: neighbouring blocks then read neighbouring memory, and the
// assignment is fixed, which makes sums reproducible.
#pragma once

#include <type_traits>

#include "cuda/base/elements.cuh"

namespace resnet_fused::cuda {

constexpr int kWalkThreads = 256;

struct Share {
  int64_t outer, channels, inner;
  int64_t positions;  // per channel tile: vectors (planes) or rows (columns)
  int wide, high;     // threads across the channel tile, threads along the positions
  int64_t tiles, chunks;
};

// `least`: positions that a thread has before the grid gets more chunks. `most`: blocks that keep the device busy.
inline Share share(const Layout& layout, int n, int64_t least, int64_t most) {
  Share s{layout.outer, layout.channels, layout.inner, 0, 1, kWalkThreads, layout.channels, 1};
  if (layout.inner == 1) {
    const int64_t vectors = layout.channels / n;
    s.tiles = ceil_divide(vectors, 32);
    s.wide = static_cast<int>(ceil_divide(vectors, s.tiles));
    s.high = kWalkThreads / s.wide;
    s.positions = layout.outer;
  } else {
    s.positions = layout.outer * (layout.inner / n);
  }
  const int64_t wanted = ceil_divide(s.positions, s.high * least), room = most / s.tiles;
  s.chunks = wanted < room ? wanted : room;
  s.chunks = s.chunks < 1 ? 1 : s.chunks > 65535 ? 65535 : s.chunks;
  return s;
}

template <int N, bool kPlanes>
struct Walk {
  static constexpr int kChannels = kPlanes ? 1 : N;  // channels of a thread
  int64_t channel, offset;                           // the thread's first channel, the element it stands at
  int across, along;                                 // the thread's place in the block, [0, wide) x [0, high)
  bool active;                                       // whether the thread has channels

  __device__ __forceinline__ explicit Walk(const Share& s) {
    if constexpr (kPlanes) {
      across = 0, along = ptx::tid(), active = true;
      channel = ptx::bid_x();
      const int64_t row = s.inner / N;
      position_ = static_cast<int64_t>(ptx::bid_y()) * kWalkThreads + along;
      step_ = static_cast<int64_t>(ptx::grid_y()) * kWalkThreads;
      end_ = s.positions;
      left_in_row_ = row - position_ % row;
      offset = (position_ / row * s.channels + channel) * s.inner + position_ % row * N;
      row_ = row;
      step_in_row_ = step_ % row;
      next_row_ = s.channels * s.inner - s.inner;
      advance_ = step_ / row * (s.channels * s.inner) + step_in_row_ * N;
    } else {
      across = ptx::tid() % s.wide, along = ptx::tid() / s.wide;
      channel = (static_cast<int64_t>(ptx::bid_x()) * s.wide + across) * N;
      active = along < s.high && channel < s.channels;
      position_ = static_cast<int64_t>(ptx::bid_y()) * s.high + along;
      step_ = static_cast<int64_t>(ptx::grid_y()) * s.high;
      end_ = active ? s.positions : 0;
      offset = position_ * s.channels + channel;
      advance_ = step_ * s.channels;
    }
  }

  __device__ __forceinline__ bool more() const { return position_ < end_; }

  __device__ __forceinline__ void next() {
    position_ += step_;
    offset += advance_;
    if constexpr (kPlanes) {
      left_in_row_ -= step_in_row_;
      if (left_in_row_ <= 0) {  // the thread enters the next plane of its channel
        left_in_row_ += row_;
        offset += next_row_;
      }
    }
  }

 private:
  int64_t position_, step_, end_, advance_;
  int64_t row_ = 0, left_in_row_ = 0, step_in_row_ = 0, next_row_ = 0;  // used for planes only
};

constexpr int kMostTileChannels = 32 * 8;

template <int kValues>
struct Constants {
  float v[kValues];
};

constexpr size_t constants_bytes(int values) { return sizeof(float) * values * kMostTileChannels; }

// constants[v][c] = of(channel).v[v] for the channels of this thread. One thread computes each channel of the tile and
// passes the values to the others through shared memory. With a dtype switch per channel and thread ptxas would need
// minutes. Every thread of the block must call it.
template <int kValues, class W, class Of>
__device__ __forceinline__ void channel_constants(const Share& share, const W& walk,
                                                  float (&constants)[kValues][W::kChannels], Of of) {
  static_assert(kMostTileChannels <= kWalkThreads, "one thread computes one channel");
  const int tile_channels = share.wide * W::kChannels;
  const int64_t channel = static_cast<int64_t>(ptx::bid_x()) * tile_channels + ptx::tid();
  if (ptx::tid() < tile_channels && channel < share.channels) {
    const Constants<kValues> mine = of(channel);
#pragma unroll
    for (int v = 0; v < kValues; ++v) {
      ptx::st_shared(ptx::smem_base() + 4 * (v * kMostTileChannels + ptx::tid()), mine.v[v]);
    }
  }
  ptx::sync_threads();
#pragma unroll
  for (int v = 0; v < kValues; ++v) {
#pragma unroll
    for (int c = 0; c < W::kChannels; ++c) {
      const int slot = v * kMostTileChannels + walk.across * W::kChannels + c;
      constants[v][c] = walk.active ? ptx::ld_shared<float>(ptx::smem_base() + 4 * slot) : 0.0f;
    }
  }
}

// The widest of {16 bytes, 8 bytes, one element} that divides a row and to which every pointer is aligned.
template <class T, class... Pointers>
int vector_width(const Layout& layout, const Pointers*... pointers) {
  const int64_t row = layout.inner == 1 ? layout.channels : layout.inner;
  for (const int bytes : {16, 8}) {
    const int n = bytes / static_cast<int>(sizeof(T));
    if (row % n == 0 && (aligned(pointers, bytes) && ...)) return n;
  }
  return 1;
}

// Calls body(std::integral_constant<int, N>, std::bool_constant<kPlanes>).
template <class T, class Body>
void with_walk(const Layout& layout, int n, Body body) {
  const auto choose = [&](auto planes) {
    if (n == 16 / sizeof(T)) return body(std::integral_constant<int, 16 / sizeof(T)>{}, planes);
    if (n == 8 / sizeof(T)) return body(std::integral_constant<int, 8 / sizeof(T)>{}, planes);
    return body(std::integral_constant<int, 1>{}, planes);
  };
  layout.inner == 1 ? choose(std::false_type{}) : choose(std::true_type{});
}

}  // namespace resnet_fused::cuda
