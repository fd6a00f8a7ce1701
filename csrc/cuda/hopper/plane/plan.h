// Tiles and lists of products of the plane convolution (plane.cuh): pure functions of a convolution's shape, so that a
// CPU can test and print them.
//
// A tile is up to four output pixels x 64 images x 128 output channels. The host lists the tile's products one by one:
// output pixel i, tap t of the filter, input pixel. A tap in the padding is in no list. Stride 1, stride 2 and the
// gradient of the input differ only in their lists. In the gradient with stride 2, pixels have different taps by their
// parity.
//
// A *plane* of shared memory holds one input pixel of 64 images x 64 channels. Planes pass through one ring, taps
// through another. A plane stays in shared memory until the last product in the list that reads it. Neighbouring output
// pixels therefore load a plane once: a row of a 3x3 filter has twelve products and loads six planes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "cuda/base/hopper.h"
#include "cuda/hopper/plane/op.h"
#include "ptx/ptx.cuh"  // defines __host__ and __device__ for g++ too

namespace resnet_fused::cuda {

// of a tile; kPlaneChannels: input channels of a step
constexpr int kPlaneImages = 64, kPlaneChannels = 64, kPlaneColumns = 128;
constexpr int kPlaneSlots = 12, kTapSlots = 6;  // slots of the two rings
constexpr int kPlaneBytes = kPlaneImages * 2 * kPlaneChannels, kTapBytes = kPlaneColumns * 2 * kPlaneChannels;
// mean, scale, bias of a tile's channels; each warpgroup has a copy
constexpr int kPlaneNormBytes = 3 * 4 * kPlaneColumns;
constexpr int kPlaneBarriers = 2 * (kPlaneSlots + kTapSlots);
constexpr int
    kPlaneShared =  // 1023: operands of wgmma begin at a multiple of 1024, the shared memory of a block may not
    1023 + kPlaneSlots * kPlaneBytes + kTapSlots * kTapBytes + 2 * kPlaneNormBytes + 8 * kPlaneBarriers;
static_assert(kPlaneShared <= kMostShared, "more shared memory than a block may have");

constexpr int kPlaneThreads = 3 * 128;  // the first warpgroup copies
// Registers of a thread: of the copying warpgroup, of the other two, and at the start, when none has been exchanged.
constexpr int kPlaneCopyRegisters = 40, kPlaneProductRegisters = 232, kPlaneRegisters = 168;
static_assert(128 * kPlaneCopyRegisters + 256 * kPlaneProductRegisters == kPlaneThreads * kPlaneRegisters,
              "what one warpgroup gives up is what the others get");

// The table of a convolution: `groups` headers, then records.
//   header [8]   first record, number of records, the output pixel of places 0 to 3 (-1: none), 0, 0
//   record [16]  tap, number of planes to load, number of planes to give back, 0,
//                the input pixels of the planes to load, the plane that each place reads (-1: none),
//                the planes to give back
// Planes are counted from the tile's first plane. The records run once for every 64 channels.
constexpr int kPlanePlaces = 4, kHeaderInts = 8, kRecordInts = 16;
// A plane is read again only while at most so many planes have been loaded after it. At most 4 + 3 planes then follow
// it up to its last product, and 4 more in the next tap. Plane n + 12, which takes its slot, comes two taps later at
// the earliest, when the slot has been given back. For filters of up to seven columns a longer reach would save no
// load.
constexpr int kPlaneReach = 4;

struct PlaneProduct {
  int tap, pixel;  // tap is r * S + s; pixel is h * W + w of the pixel that is read
};

// Which taps an output pixel reads, and from which input pixels. gradient: the output is the gradient of a
// convolution's input [h, w], and the input is the gradient of its output [p, q].
struct PlaneShape {
  Convolution conv;
  bool gradient;

  int64_t rows() const { return gradient ? conv.h : conv.p; }
  int64_t columns() const { return gradient ? conv.w : conv.q; }
  int64_t read_rows() const { return gradient ? conv.p : conv.h; }
  int64_t read_columns() const { return gradient ? conv.q : conv.w; }
  // Output columns at this distance read neighbouring input columns.
  int step() const { return gradient ? static_cast<int>(conv.stride_w) : 1; }

  // Row or column of the input that tap t of the output at `position` reads, or -1.
  static int64_t source(bool gradient, int64_t position, int64_t t, int64_t stride, int64_t pad, int64_t dilation,
                        int64_t size) {
    int64_t at = gradient ? position + pad - t * dilation : position * stride - pad + t * dilation;
    if (gradient) {
      if (at < 0 || at % stride != 0) return -1;
      at /= stride;
    }
    return at >= 0 && at < size ? at : -1;
  }

  // Columns of the filter in the order of the list, from the left of the input to the right. Columns that share input
  // columns stand together: with stride 2 these are every other column.
  std::vector<int> columns_of_filter() const {
    std::vector<int> order;
    for (int s = 0; s < conv.s; ++s) order.push_back(gradient ? static_cast<int>(conv.s) - 1 - s : s);
    const auto phase = [&](int s) { return gradient ? 0 : int64_t{s} * conv.dilation_w % conv.stride_w; };
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return phase(a) < phase(b); });
    return order;
  }

  int64_t source_of(int64_t row, int64_t column, int r, int s) const {
    const int64_t h = source(gradient, row, r, conv.stride_h, conv.pad_h, conv.dilation_h, read_rows());
    const int64_t w = source(gradient, column, s, conv.stride_w, conv.pad_w, conv.dilation_w, read_columns());
    return h < 0 || w < 0 ? -1 : h * read_columns() + w;
  }
};

struct PlaneRecord {
  int tap = 0, loaded = 0, freed = 0;
  int pixels[kPlanePlaces] = {}, read[kPlanePlaces] = {-1, -1, -1, -1}, last[kPlanePlaces] = {};
};

struct PlaneGroup {
  int pixels[kPlanePlaces] = {-1, -1, -1, -1};
  std::vector<PlaneRecord> records;
  int planes = 0;    // planes that the records load
  int64_t cost = 0;  // number of products: the warpgroups share the tensor cores
};

// The place of a group's pixel `number`. The two warpgroups own places 0, 1 and 2, 3 (or 0 and 1) and take pixels in
// turn. A group that is not full then gives work to both.
constexpr int plane_place(int places, int number) { return places == 4 ? (number % 2) * 2 + number / 2 : number; }

// The group of `count` pixels of a row, from `column` on in steps of shape.step(), for tiles of `places` pixels (2 or
// 4).
inline PlaneGroup plane_group(const PlaneShape& shape, int places, int64_t row, int64_t column, int count) {
  PlaneGroup group;
  std::vector<int> planes, last;  // the input pixel of each plane, and the last record that reads it
  for (int i = 0; i < count; ++i) {
    group.pixels[plane_place(places, i)] = static_cast<int>(row * shape.columns() + column + i * shape.step());
  }
  const std::vector<int> columns = shape.columns_of_filter();
  for (int r = 0; r < shape.conv.r; ++r) {
    for (const int s : columns) {
      PlaneRecord record;
      record.tap = static_cast<int>(r * shape.conv.s + s);
      int products = 0;
      for (int i = 0; i < count; ++i) {
        const int64_t pixel = shape.source_of(row, column + i * shape.step(), r, s);
        if (pixel < 0) continue;
        const int loaded = static_cast<int>(planes.size());
        int plane = loaded - 1;
        while (plane >= 0 && loaded - plane <= kPlaneReach && planes[plane] != pixel) --plane;
        if (plane < 0 || loaded - plane > kPlaneReach) {
          plane = loaded;
          planes.push_back(static_cast<int>(pixel));
          last.push_back(0);
          record.pixels[record.loaded++] = static_cast<int>(pixel);
        }
        const int place = plane_place(places, i);
        record.read[place] = plane;
        last[plane] = static_cast<int>(group.records.size());
        ++products;
      }
      if (products == 0) continue;
      group.cost += products;
      group.records.push_back(record);
    }
  }
  for (size_t plane = 0; plane < last.size(); ++plane) {
    PlaneRecord& record = group.records[last[plane]];
    record.last[record.freed++] = static_cast<int>(plane);
  }
  group.planes = static_cast<int>(planes.size());
  return group;
}

// Every output pixel is in one group. The groups with the most products come first, so that the last wave ends with the
// smallest tiles.
inline std::vector<PlaneGroup> plane_groups(const PlaneShape& shape, int places) {
  std::vector<PlaneGroup> groups;
  const int64_t step = shape.step(), columns = shape.columns();
  for (int64_t row = 0; row < shape.rows(); ++row) {
    for (int64_t phase = 0; phase < step; ++phase) {
      for (int64_t column = phase; column < columns; column += places * step) {
        const int64_t left = (columns - column + step - 1) / step;
        groups.push_back(plane_group(shape, places, row, column, static_cast<int>(std::min<int64_t>(left, places))));
      }
    }
  }
  std::stable_sort(groups.begin(), groups.end(), [](const auto& a, const auto& b) { return a.cost > b.cost; });
  return groups;
}

// The number of groups of plane_groups().
inline int64_t plane_group_count(const PlaneShape& shape, int places) {
  int64_t count = 0;
  for (int64_t phase = 0; phase < std::min<int64_t>(shape.step(), shape.columns()); ++phase) {
    count += ((shape.columns() - phase - 1) / shape.step() + places) / places;
  }
  return shape.rows() * count;
}

inline std::vector<int> plane_table(const std::vector<PlaneGroup>& groups) {
  std::vector<int> table;
  int first = 0;
  for (const PlaneGroup& group : groups) {
    const int records = static_cast<int>(group.records.size());
    table.insert(table.end(),
                 {first, records, group.pixels[0], group.pixels[1], group.pixels[2], group.pixels[3], group.planes, 0});
    first += records;
  }
  for (const PlaneGroup& group : groups) {
    for (const PlaneRecord& record : group.records) {
      table.insert(table.end(), {record.tap, record.loaded, record.freed, 0});
      for (const auto& four : {record.pixels, record.read, record.last}) {
        table.insert(table.end(), four, four + kPlanePlaces);
      }
    }
  }
  return table;
}

// Which tiles a block computes. The blocks of a cluster (1 or 2) take tiles that differ only in their images: they use
// the same list and the same sequence of weights, and each block loads its part of the weights for both. An odd number
// of blocks of 64 images is rounded up. The second block of the last pair then multiplies the copy engine's zeros; it
// would have no other work.
struct PlaneSchedule {
  int groups, image_blocks, channel_blocks, cluster;  // image_blocks: a multiple of `cluster`

  __host__ __device__ int steps() const { return groups * (image_blocks / cluster) * channel_blocks; }
};
struct PlaneSpot {
  int group, image, channel;  // the first of 64 images, of 128 channels
};

inline PlaneSchedule plane_schedule(const PlaneShape& shape, int places, int cluster) {
  const int64_t written = shape.gradient ? shape.conv.c : shape.conv.k, images = kPlaneImages * cluster;
  return {static_cast<int>(plane_group_count(shape, places)),
          static_cast<int>((shape.conv.n + images - 1) / images) * cluster,
          static_cast<int>((written + kPlaneColumns - 1) / kPlaneColumns), cluster};
}

// The tile of the block of rank `rank` in step `step`, counted over all clusters. Channels vary fastest, then images:
// blocks that run together read the same planes.
__host__ __device__ __forceinline__ PlaneSpot plane_spot(const PlaneSchedule& s, int step, int rank) {
  const int part = step / s.channel_blocks, images = s.image_blocks / s.cluster, group = part / images;
  return {group, ((part - group * images) * s.cluster + rank) * kPlaneImages,
          (step - part * s.channel_blocks) * kPlaneColumns};
}

// Why `device` cannot run the kernel for a convolution, or for the gradient of its input; else "".
inline std::string plane_refusal(Capability device, DType dtype, const Convolution& conv, bool gradient) {
  if (const std::string why = hopper_refusal(device); !why.empty()) return why;
  if (dtype == DType::f32) return "the kernel multiplies float16 and bfloat16, not float32";
  if (conv.groups != 1) return "the kernel takes one group, not " + std::to_string(conv.groups);
  const PlaneShape shape{conv, gradient};
  const int64_t read = gradient ? conv.k : conv.c, written = gradient ? conv.c : conv.k;
  if (read % kPlaneChannels != 0) {
    return "the kernel reads channels in multiples of 64, not " + std::to_string(read);
  }
  if (written % 64 != 0 || written < kPlaneColumns) {
    return "the kernel writes channels in multiples of 64 from 128 on, not " + std::to_string(written);
  }
  constexpr int64_t kMost = int64_t{1} << 31;
  const int64_t pixels = shape.rows() * shape.columns();
  if (shape.read_rows() * shape.read_columns() * read >= kMost || pixels * written >= kMost ||
      conv.r * conv.s * read >= kMost ||
      pixels * (conv.n / kPlaneImages + 2) * (written / kPlaneColumns + 1) >= kMost) {
    return "the kernel counts in 32 bits, too few for " + std::to_string(conv.n) + " images of " +
           std::to_string(shape.read_rows()) + " x " + std::to_string(shape.read_columns()) + " x " +
           std::to_string(read);
  }
  return "";
}

}  // namespace resnet_fused::cuda
