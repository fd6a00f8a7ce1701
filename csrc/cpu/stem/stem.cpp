#include "cpu/stem/stem.h"

#include <array>
#include <cstring>

#include "cpu/base/bf16.h"
#include "cpu/base/isa.h"
#include "cpu/stem/isa/stem_kernels.h"

namespace resnet_fused::cpu {
RESNET_FUSED_PER_ISA(extern const StemKernels stem_kernels;)

namespace {

const StemKernels& kernels() { return RESNET_FUSED_BEST(stem_kernels); }

constexpr int64_t kPooledRows = 3;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Sizes {
  explicit Sizes(const StemShape& shape)
      : padded_row(divide_up((shape.w + 2 * shape.padding()) * shape.c, 16) * 16),
        panels(divide_up(shape.k, kStemPanel)),
        conv_row(shape.q * panels * kStemPanel),
        slot(shape.kernel() * padded_row + kPooledRows * conv_row) {}
  int64_t padded_row, panels, conv_row, slot;
};

// The rows of one piece: a ring of `kernel` padded input rows, and a ring of three rows of the convolution.
class Rows {
 public:
  Rows(const StemShape& shape, const void* x, bool x_bf16, const std::array<int64_t, 4>& strides, const float* packed,
       const float* shift, bool out_bf16, float* memory)
      : shape_(shape),
        sizes_(shape),
        kernels_(kernels()),
        x_(x),
        x_bf16_(x_bf16),
        out_bf16_(out_bf16),
        strides_(strides),
        packed_(packed),
        shift_(shift),
        input_(memory),
        conv_(memory + shape.kernel() * sizes_.padded_row) {}

  void pool(int64_t image, int64_t p, void* out) {
    if (image != image_) {
      image_ = image;
      input_end_ = conv_end_ = 0;
    }
    const float* rows[kPooledRows];
    int count = 0;
    for (int64_t y = p > 0 ? 2 * p - 1 : 0; y <= 2 * p + 1 && y < shape_.p; ++y) {
      if (y >= conv_end_) convolve(y);
      rows[count++] = conv_ + y % kPooledRows * sizes_.conv_row;
    }
    (out_bf16_ ? kernels_.pool_bf16 : kernels_.pool)(rows, count, shape_.q, sizes_.panels * kStemPanel, shape_.k, out);
  }

 private:
  void convolve(int64_t y) {
    const float* rows[kStemKernel];
    for (int64_t i = 0; i < shape_.kernel(); ++i) {
      const int64_t row = y * shape_.stride() + i;  // row of the padded image
      if (row >= input_end_) read(row);
      rows[i] = input_ + row % shape_.kernel() * sizes_.padded_row;
    }
    StemRow call;
    call.rows = rows;
    call.kernel = shape_.kernel();
    call.taps = shape_.kernel() * shape_.c;
    call.step = shape_.stride() * shape_.c;
    call.out_stride = sizes_.panels * kStemPanel;
    const int64_t width = shape_.q, parts = divide_up(width, kernels_.max_pixels);
    for (int64_t panel = 0; panel < sizes_.panels; ++panel) {
      const int64_t k = panel * kStemPanel;
      call.weights = packed_ + panel * shape_.kernel() * call.taps * kStemPanel;
      call.shift = shift_ + k;
      call.channels = shape_.k - k < kStemPanel ? shape_.k - k : kStemPanel;
      for (int64_t part = 0; part < parts; ++part) {
        const int64_t first = part_begin(width, parts, part), pixels = part_begin(width, parts, part + 1) - first;
        call.out = conv_ + y % kPooledRows * sizes_.conv_row + first * call.out_stride + k;
        kernels_.row[pixels](call, first * call.step);
      }
    }
    conv_end_ = y + 1;
  }

  // Copies row `row` of the padded image, with interleaved channels.
  void read(int64_t row) {
    float* to = input_ + row % shape_.kernel() * sizes_.padded_row;
    const int64_t y = row - shape_.padding(), pad = shape_.padding() * shape_.c, size = shape_.w * shape_.c;
    input_end_ = row + 1;
    if (y < 0 || y >= shape_.h) {
      std::memset(to, 0, sizeof(float) * (size + 2 * pad));
      return;
    }
    std::memset(to, 0, sizeof(float) * pad);
    std::memset(to + pad + size, 0, sizeof(float) * pad);
    if (x_bf16_) {
      interleave(static_cast<const uint16_t*>(x_), y, to + pad, float_of);
    } else if (out_bf16_) {  // the result is that of an x converted to bfloat16 before the call
      interleave(static_cast<const float*>(x_), y, to + pad, [](float value) { return float_of(bf16_of(value)); });
    } else {
      interleave(static_cast<const float*>(x_), y, to + pad, [](float value) { return value; });
    }
  }
  template <class T, class Widen>
  void interleave(const T* x, int64_t y, float* to, const Widen& widen) const {
    const T* from = x + image_ * strides_[0] + y * strides_[2];
    if (strides_[1] == 1 && strides_[3] == shape_.c) {
      for (int64_t i = 0; i < shape_.w * shape_.c; ++i) to[i] = widen(from[i]);
      return;
    }
    for (int64_t c = 0; c < shape_.c; ++c) {
      for (int64_t i = 0; i < shape_.w; ++i) to[i * shape_.c + c] = widen(from[c * strides_[1] + i * strides_[3]]);
    }
  }

  const StemShape& shape_;
  const Sizes sizes_;
  const StemKernels& kernels_;
  const void* x_;
  const bool x_bf16_, out_bf16_;
  const std::array<int64_t, 4>& strides_;
  const float *packed_, *shift_;
  float *input_, *conv_;
  int64_t image_ = -1, input_end_ = 0, conv_end_ = 0;
};

}  // namespace

int64_t stem_packed_size(int64_t k, int64_t c, int64_t kernel) {
  return divide_up(k, kStemPanel) * kStemPanel * c * kernel * kernel;
}

int64_t stem_workspace_size(const StemShape& shape, int slots) { return slots * Sizes(shape).slot; }

void stem_pack(const float* weight, const float* scale, int64_t k, int64_t c, int64_t kernel, float* packed) {
  const int64_t taps = kernel * kernel * c;
  std::memset(packed, 0, sizeof(float) * stem_packed_size(k, c, kernel));
  for (int64_t ki = 0; ki < k; ++ki) {
    const double factor = scale ? scale[ki] : 1.0;
    float* to = packed + ki / kStemPanel * taps * kStemPanel + ki % kStemPanel;
    for (int64_t ci = 0; ci < c; ++ci) {
      for (int64_t tap = 0; tap < kernel * kernel; ++tap) {
        to[(tap * c + ci) * kStemPanel] = static_cast<float>(weight[(ki * c + ci) * kernel * kernel + tap] * factor);
      }
    }
  }
}

void stem_loops(const StemShape& shape, const void* x, bool x_bf16, const int64_t (&strides)[4], const float* packed,
                const float* shift, void* out, bool out_bf16, int slots, float* workspace, Loops& loops) {
  const int64_t height = shape.pooled_h(), rows = shape.n * height, pieces = stem_pieces(rows, slots);
  const int64_t out_row = shape.pooled_w() * shape.k * (out_bf16 ? 2 : 4), size = Sizes(shape).slot;
  const std::array<int64_t, 4> steps = std::to_array(strides);
  loops.push_back({pieces, [=](int64_t piece, int slot) {
                     Rows own(shape, x, x_bf16, steps, packed, shift, out_bf16, workspace + slot * size);
                     for (int64_t row = part_begin(rows, pieces, piece); row < part_begin(rows, pieces, piece + 1);
                          ++row) {
                       own.pool(row / height, row % height, static_cast<char*>(out) + row * out_row);
                     }
                   }});
}

}  // namespace resnet_fused::cpu
