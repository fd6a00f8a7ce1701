// The instructions that the strip convolution uses and hopper_checks.cpp does not: boxes of images with the images
// innermost, products of 112 columns that begin at any pixel of such a box, and stmatrix. There are right uses, and
// mistakes that the emulator must report. On a GPU of compute capability 9.0 the right uses run with the same
// expectations:
//   nvcc -x cu -std=c++17 -gencode=arch=compute_90a,code=sm_90a -Icsrc -Itests/emulator
//     tests/emulator/checks/hopper_boxes.cpp -o boxes && ./boxes
#include "cuda/base/tensor_map.h"
#include "emulator/checks/harness.h"
#include "ptx/hopper.cuh"

namespace micro {

constexpr int kImages = 11, kHeight = 3, kWidth = 18, kChannels = 72;  // no size is a multiple of a box
constexpr int kGroup = 8, kPixels = 16, kColumns = 112;
constexpr int kBoxBytes = kGroup * kPixels * 128, kTileBytes = 64 * 128;

struct At {
  int channel, image, column, line, shift;
};

// D [64, 112] = A [64, 64] B^T. Row 8 p + i of B is pixel shift + p of image i in a box that begins at `at`.
template <class T, int kRank>
__global__ void __launch_bounds__(128) box_kernel(const __grid_constant__ ptx::TensorMap a,
                                                  const __grid_constant__ ptx::TensorMap images, At at, float* out) {
  const uint32_t base = (ptx::smem_base() + 1023) / 1024 * 1024, box = base + kTileBytes, arrival = box + kBoxBytes;
  if (ptx::tid() == 0) {
    ptx::mbar_init(arrival, 1);
    ptx::mbar_init_fence();
    // the bytes of the whole box, also where it extends past an edge
    ptx::mbar_arrive_expect(arrival, kTileBytes + kBoxBytes);
    ptx::copy_2d(base, a, 0, 0, arrival);
    if constexpr (kRank == 4) {
      ptx::copy_4d(box, images, at.channel, at.image, at.column, at.line, arrival);
    } else {
      ptx::copy_2d(box, images, at.channel, at.image, arrival);
    }
  }
  ptx::sync_threads();
  ptx::mbar_wait(arrival, 0);
  float d[kColumns / 2];
  ptx::wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    ptx::wgmma<T, kColumns>(d, ptx::wgmma_descriptor(base + 32 * k),
                            ptx::wgmma_descriptor(box + 1024 * at.shift) + 2 * k, k > 0);
  }
  ptx::wgmma_commit();
  ptx::wgmma_finish(d);
  const int g = ptx::lane() / 4, t = ptx::lane() % 4;
  for (int i = 0; i < kColumns / 2; ++i) {
    const int m = 16 * ptx::warp() + g + i / 2 % 2 * 8, n = i / 4 * 8 + 2 * t + i % 2;
    ptx::st_global(out + m * kColumns + n, d[i]);
  }
}

inline float value(int64_t i) { return static_cast<float>((i * 7 + i / 5) % 13 - 6); }

template <class T>
uint16_t bits_of(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, 4);
  if (!ptx::is_f16<T>) return static_cast<uint16_t>(bits >> 16);
  return static_cast<uint16_t>(v == 0 ? 0 : (bits >> 16 & 0x8000) | ((bits >> 13 & 0x3fffff) - 0x1c000));
}

template <class T, int kRank>
void box(Buffer<float>& out, At at) {
  Buffer<uint16_t> a(64 * 64), images(kImages * kHeight * kWidth * kChannels);
  for (size_t i = 0; i < a.size(); ++i) a[i] = bits_of<T>(value(static_cast<int64_t>(i)));
  for (size_t i = 0; i < images.size(); ++i) images[i] = bits_of<T>(value(static_cast<int64_t>(i)));
  const DType dtype = ptx::is_f16<T> ? DType::f16 : DType::bf16;
  const auto a_map = cuda::matrix_map("micro", {a.get(), dtype, 64, 64, 128, 64});
  const auto map =
      cuda::images_map("micro", {images.get(), dtype, kImages, kHeight, kWidth, kChannels, kGroup, kPixels});
  run(box_kernel<T, kRank>, {1}, 128, 1024 + kTileBytes + kBoxBytes + 16, a_map, map, at, out.get());
}

// The matrices hold small integers, so the product is exact. The box extends past every edge, where it must read zeros.
template <class T>
void right() {
  for (const At at : {At{0, 0, 0, 0, 0},
                      {0, 0, -1, 1, 1},
                      {0, 8, 13, 2, 2},
                      {8, -3, 2, 1, 0},
                      {16, 4, 0, -1, 1},
                      {0, 0, 0, 3, 0},
                      {0, 16, 40, 9, 2}}) {
    Buffer<float> out(64 * kColumns);
    box<T, 4>(out, at);
    for (int m = 0; m < 64; ++m) {
      for (int n = 0; n < kColumns; ++n) {
        const int image = at.image + n % kGroup, column = at.column + at.shift + n / kGroup;
        const bool inside =
            image >= 0 && image < kImages && column >= 0 && column < kWidth && at.line >= 0 && at.line < kHeight;
        float want = 0;
        for (int k = 0; inside && k < 64 && at.channel + k < kChannels; ++k) {
          const int64_t pixel = (int64_t{image} * kHeight + at.line) * kWidth + column;
          want += value(m * 64 + k) * value(pixel * kChannels + at.channel + k);
        }
        expect_equal(out[m * kColumns + n], want, "D", m * kColumns + n);
      }
    }
  }
}

// One warp. Lane 4 g + t holds elements (g, 2 t) and the next of four 8 x 8 matrices. Their transposes go to rows of 16
// bytes in the order 3, 2, 1, 0. ldmatrix_x4_trans must then read what the registers held.
template <bool kSynchronised>
__global__ void __launch_bounds__(32) transposed_kernel(uint16_t* out, uint32_t* again) {
  const uint32_t row = ptx::smem_base() + (3 - ptx::lane() / 8) * 128 + ptx::lane() % 8 * 16;
  uint32_t r[4], back[4];
  for (int i = 0; i < 4; ++i) {
    const uint32_t first = 64 * i + 8 * (ptx::lane() / 4) + 2 * (ptx::lane() % 4);
    r[i] = first | (first + 1) << 16;
  }
  ptx::stmatrix_x4_trans(row, r);
  if (kSynchronised) ptx::sync_warp();
  ptx::ldmatrix_x4_trans(back, row);
  for (int i = 0; i < 4; ++i) ptx::st_global(again + 4 * ptx::lane() + i, back[i]);
  for (int i = 0; i < 8; ++i) {
    ptx::st_global(out + 8 * ptx::lane() + i, ptx::ld_shared<uint16_t>(ptx::smem_base() + 16 * ptx::lane() + 2 * i));
  }
}

void transposed() {
  Buffer<uint16_t> out(256);
  Buffer<uint32_t> again(128);
  run(transposed_kernel<true>, {1}, 32, 512, out.get(), again.get());
  for (int i = 0; i < 256; ++i) {
    const int matrix = 3 - i / 64, row = i / 8 % 8, column = i % 8;
    expect_equal<uint16_t>(out[i], static_cast<uint16_t>(64 * matrix + 8 * column + row), "stored", i);
  }
  for (int i = 0; i < 128; ++i) {
    const uint32_t first = 64 * (i % 4) + 8 * (i / 16) + 2 * (i / 4 % 4);
    expect_equal(again[i], first | (first + 1) << 16, "again", i);
  }
}

#ifdef HOST_EMULATION
void another_rank() {
  Buffer<float> out(64 * kColumns);
  reported([&] { box<ptx::f16, 2>(out, {}); }, "by a map of another number");
}
void not_synchronised() {
  Buffer<uint16_t> out(256);
  Buffer<uint32_t> again(128);
  reported([&] { run(transposed_kernel<false>, {1}, 32, 512, out.get(), again.get()); }, "race");
}
#endif

}  // namespace micro

int main() {
  using namespace micro;
  if (!on_hopper()) return 0;
  std::vector<Check> checks = {
      {"boxes of images, m64n112k16 f16", right<ptx::f16>},
      {"boxes of images, m64n112k16 bf16", right<ptx::bf16>},
      {"stmatrix", transposed},
  };
#ifdef HOST_EMULATION
  checks.push_back({"a map of another rank", another_rank});
  checks.push_back({"stmatrix read without sync_warp", not_synchronised});
#endif
  return run_all(checks, 3) == 0 ? 0 : 1;
}
