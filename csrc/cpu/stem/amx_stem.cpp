#include "cpu/stem/amx_stem.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "cpu/base/bf16.h"
#include "cpu/base/isa.h"
#include "cpu/stem/isa/amx_stem_kernels.h"

namespace resnet_fused::cpu {
namespace portable {
extern const AmxStemKernels amx_stem_kernels;
}
#ifdef RESNET_FUSED_WITH_AMX
namespace amx {
extern const AmxStemKernels amx_stem_kernels;
}
#endif

namespace {

const AmxStemKernels& chosen_kernels() {
#ifdef RESNET_FUSED_WITH_AMX
  if (isa() == Isa::amx) return amx::amx_stem_kernels;
#endif
  return portable::amx_stem_kernels;
}

constexpr int64_t kPixels = 16, kPanel = 32, kValues = kAmxStemChannels * kAmxStemWidth;
constexpr int64_t kTileWeights = kPanel / 2 * kValues;
constexpr int64_t kConvRows = 4;  // two rows, and the rows that the previous pair of rows left
// values that 16 pixels of the convolution read of a part of an input row
constexpr int64_t kWindows = kPixels * kValues;

int64_t up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

struct Sizes {
  explicit Sizes(const AmxStemShape& s)
      : channels(up(s.k, kPanel)),
        tiles(up(s.q, kPixels) / kPixels),
        // The values that the windows of all tiles read, or the padded row, whichever is larger.
        row(up(std::max((tiles * kPixels - 1) * s.stride() + kAmxStemWidth, s.w + 2 * s.padding()) * kAmxStemChannels,
               kValues)),
        input_rows(s.kernel() + s.stride()),
        floats(up(row + kConvRows * tiles * kPixels * channels, 16)),
        input(up(input_rows * row * s.parts, 32)),
        slot(floats * 4 + (input + 2 * s.kernel() * s.parts * kWindows) * 2) {}
  int64_t channels, tiles;
  int64_t row;         // values of one part of an input row
  int64_t input_rows;  // input rows that two rows of the convolution read
  int64_t floats, input;
  int64_t slot;  // bytes of a slot
};

// The rows of one piece: a ring of input rows, split into parts, and a ring of rows of the convolution.
class Rows {
 public:
  Rows(const AmxStemShape& shape, const void* x, bool x_bf16, const std::array<int64_t, 4>& strides,
       const uint16_t* packed, const float* shift, char* memory)
      : shape_(shape),
        sizes_(shape),
        kernels_(chosen_kernels()),
        x_(x),
        x_bf16_(x_bf16),
        strides_(strides),
        packed_(packed),
        shift_(shift),
        line_(reinterpret_cast<float*>(memory)),
        conv_(line_ + sizes_.row),
        input_(reinterpret_cast<uint16_t*>(memory + sizes_.floats * 4)),
        windows_(input_ + sizes_.input),
        finite_(sizes_.input_rows),
        pointers_(2 * shape.kernel()) {
    kernels_.begin(saved_);
  }
  ~Rows() { kernels_.end(saved_); }
  Rows(const Rows&) = delete;
  Rows& operator=(const Rows&) = delete;

  void pool(int64_t image, int64_t p, void* out) {
    if (image != image_) {
      image_ = image;
      input_end_ = 0;
      conv_end_ = 0;
    }
    const float* rows[3];
    int count = 0;
    for (int64_t y = p > 0 ? 2 * p - 1 : 0; y <= 2 * p + 1 && y < shape_.p; ++y) {
      if (y >= conv_end_) convolve(y / 2 * 2);
      rows[count++] = conv_row(y);
    }
    (shape_.parts == 1 ? kernels_.pool1 : kernels_.pool3)(rows, count, shape_.q, sizes_.channels, shape_.k, out);
  }

 private:
  float* conv_row(int64_t y) const { return conv_ + y % kConvRows * sizes_.tiles * kPixels * sizes_.channels; }

  // Computes rows y and y + 1 of the convolution. Row y + 1 may lie beyond the last row.
  void convolve(int64_t y) {
    const int64_t first = y * shape_.stride(), past = first + shape_.stride() + shape_.kernel();
    for (int64_t row = std::max(first, input_end_); row < past; ++row) read(row);
    input_end_ = past;
    bool in_place = true;
    for (int64_t row = first; row < past; ++row) in_place &= finite_[row % sizes_.input_rows] != 0;
    AmxStemGemm call{};
    call.kernel = shape_.kernel();
    call.part_stride = in_place ? sizes_.row : kWindows;
    call.pixel_stride = in_place ? shape_.stride() * kAmxStemChannels : kValues;
    call.stride = sizes_.channels;
    for (int64_t tile = 0; tile < sizes_.tiles; ++tile) {
      for (int64_t which = 0; which < 2; ++which) {
        for (int64_t i = 0; i < shape_.kernel(); ++i) {
          const int64_t at = which * shape_.kernel() + i;
          const uint16_t* row =
              input_row(first + which * shape_.stride() + i) + tile * kPixels * shape_.stride() * kAmxStemChannels;
          pointers_[at] = in_place ? row : copy_windows(row, windows_ + at * shape_.parts * kWindows);
        }
        call.rows[which] = pointers_.data() + which * shape_.kernel();
      }
      for (int64_t channel = 0; channel < sizes_.channels; channel += kPanel) {
        call.b = packed_ + channel / kPanel * shape_.kernel() * shape_.parts * 2 * kTileWeights;
        for (int64_t which = 0; which < 2; ++which) {
          call.c[which] = conv_row(y + which) + tile * kPixels * sizes_.channels + channel;
        }
        (shape_.parts == 1 ? kernels_.gemm1 : kernels_.gemm3)(call);
      }
    }
    for (int64_t which = 0; which < 2; ++which) {
      kernels_.finish(conv_row(y + which), shift_, shape_.q, sizes_.channels);
    }
    conv_end_ = y + 2;
  }

  // A row of a tile is 8 pixels wide. Where the kernel is narrower, the further pixels have weight 0. A pixel of them
  // that is not finite would make a NaN that torch does not have. In that case 16 pixels get windows of their own with
  // zeros beyond the kernel. The result has the same bits.
  const uint16_t* copy_windows(const uint16_t* row, uint16_t* to) const {
    const int64_t values = shape_.kernel() * kAmxStemChannels;
    std::memset(to, 0, shape_.parts * kWindows * sizeof(uint16_t));
    for (int64_t part = 0; part < shape_.parts; ++part) {
      for (int64_t pixel = 0; pixel < kPixels; ++pixel) {
        std::memcpy(to + part * kWindows + pixel * kValues,
                    row + part * sizes_.row + pixel * shape_.stride() * kAmxStemChannels, values * sizeof(uint16_t));
      }
    }
    return to;
  }

  uint16_t* input_row(int64_t row) const { return input_ + row % sizes_.input_rows * sizes_.row * shape_.parts; }

  // Reads row `row` of the padded image, four values a pixel.
  void read(int64_t row) {
    const int64_t y = row - shape_.padding();
    finite_[row % sizes_.input_rows] = 1;
    if (y < 0 || y >= shape_.h) {
      std::memset(input_row(row), 0, sizes_.row * shape_.parts * sizeof(uint16_t));
      return;
    }
    const int64_t begin = shape_.padding() * kAmxStemChannels, end = begin + shape_.w * kAmxStemChannels;
    std::memset(line_, 0, begin * sizeof(float));
    std::memset(line_ + end, 0, (sizes_.row - end) * sizeof(float));
    const int64_t at = image_ * strides_[0] + y * strides_[2];
    if (x_bf16_) {
      interleave(static_cast<const uint16_t*>(x_) + at, line_ + begin);
    } else {
      interleave(static_cast<const float*>(x_) + at, line_ + begin);
    }
    finite_[row % sizes_.input_rows] =
        (shape_.parts == 1 ? kernels_.split1 : kernels_.split3)(line_, sizes_.row, input_row(row), sizes_.row);
  }

  static float widened(float value) { return value; }
  static float widened(uint16_t bf16) { return float_of(bf16); }

  template <class T>
  void interleave(const T* from, float* to) const {
    if (shape_.c < kAmxStemChannels) std::memset(to, 0, shape_.w * kAmxStemChannels * sizeof(float));
    for (int64_t c = 0; c < shape_.c; ++c) {
      const T* channel = from + c * strides_[1];
      for (int64_t x = 0; x < shape_.w; ++x) to[x * kAmxStemChannels + c] = widened(channel[x * strides_[3]]);
    }
  }

  const AmxStemShape& shape_;
  const Sizes sizes_;
  const AmxStemKernels& kernels_;
  const void* x_;
  const bool x_bf16_;
  const std::array<int64_t, 4>& strides_;
  const uint16_t* packed_;
  const float* shift_;
  float *line_, *conv_;
  uint16_t *input_, *windows_;
  std::vector<char> finite_;  // per input row
  std::vector<const uint16_t*> pointers_;
  alignas(64) char saved_[64];
  int64_t image_ = -1, input_end_ = 0, conv_end_ = 0;
};

}  // namespace

int64_t amx_stem_packed_size(const AmxStemShape& shape) {
  return up(shape.k, kPanel) * shape.kernel() * shape.parts * kValues;
}

int64_t amx_stem_workspace_size(const AmxStemShape& shape, int slots) { return slots * Sizes(shape).slot; }

void amx_stem_pack(const AmxStemShape& shape, const float* weight, uint16_t* packed) {
  std::memset(packed, 0, sizeof(uint16_t) * amx_stem_packed_size(shape));
  for (int64_t k = 0; k < shape.k; ++k) {
    for (int64_t c = 0; c < shape.c; ++c) {
      for (int64_t y = 0; y < shape.kernel(); ++y) {
        for (int64_t x = 0; x < shape.kernel(); ++x) {
          const int64_t value = x * kAmxStemChannels + c;  // position of the value in a row of a tile
          float left = weight[((k * shape.c + c) * shape.kernel() + y) * shape.kernel() + x];
          for (int part = 0; part < shape.parts; ++part) {
            const int64_t tile =
                (((k / kPanel * shape.kernel() + y) * shape.parts + shape.parts - 1 - part) * 2) + k % kPanel / 16;
            const uint16_t word = bf16_of(left);
            packed[tile * kTileWeights + (value / 2 * 16 + k % 16) * 2 + value % 2] = word;
            left -= float_of(word);
          }
        }
      }
    }
  }
}

void amx_stem_loops(const AmxStemShape& shape, const void* x, bool x_bf16, const int64_t (&strides)[4],
                    const uint16_t* packed, const float* shift, void* out, int slots, void* workspace, Loops& loops) {
  const int64_t height = shape.pooled_h(), rows = shape.n * height, pieces = stem_pieces(rows, slots);
  const int64_t out_row = shape.pooled_w() * shape.k * (shape.parts == 1 ? 2 : 4), size = Sizes(shape).slot;
  const std::array<int64_t, 4> steps = std::to_array(strides);
  loops.push_back({pieces, [=](int64_t piece, int slot) {
                     Rows own(shape, x, x_bf16, steps, packed, shift, static_cast<char*>(workspace) + slot * size);
                     for (int64_t row = part_begin(rows, pieces, piece); row < part_begin(rows, pieces, piece + 1);
                          ++row) {
                       own.pool(row / height, row % height, static_cast<char*>(out) + row * out_row);
                     }
                   }});
}

}  // namespace resnet_fused::cpu
