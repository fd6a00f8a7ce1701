// training_blocks: a run of residual blocks in training on a GPU, in one call: allocations and launches without the
// Python between them. resnet_fused/ops/training runs the same kernels in the same order, pass by pass, so both results
// are equal bit for bit (resnet_fused/ops/training/one_call.py). All maps are channels_last, and every batch norm has
// the statistics of this process's batch, or frozen ones.
#include "register/cuda/training.h"

namespace resnet_fused {

std::vector<Block> decode(const char* op, const std::vector<Tensor>& tensors, const std::vector<int64_t>& numbers,
                          const std::vector<double>& eps) {
  size_t number = 1, next_eps = 0;
  int64_t tensor = 0;
  const auto next = [&] {
    STD_TORCH_CHECK(number < numbers.size(), op, ": ", numbers.size(), " numbers are too few for ", eps.size(),
                    " convolutions");
    return numbers[number++];
  };
  const auto pair = [&] {
    const int64_t first = next();
    return Pair{first, next()};
  };
  std::vector<Block> blocks(next());
  for (Block& block : blocks) {
    const int64_t count = next();
    block.projects = next() != 0;
    for (int64_t i = 0; i < count + block.projects; ++i) {
      Unit unit{tensors.data(), {tensor++, -1, -1, -1, -1}, pair(), pair(), pair(), next(), 0};
      for (const Part part : {kBnWeight, kBnBias, kRunningMean}) {
        if (next() != 0) unit.at[part] = tensor++;
      }
      if (unit.has(kRunningMean)) unit.at[kRunningVar] = tensor++;
      STD_TORCH_CHECK(next_eps < eps.size(), op, ": ", eps.size(), " values of eps are too few");
      unit.eps = eps[next_eps++];
      block.units.push_back(unit);
    }
    STD_TORCH_CHECK(count > 0, op, ": a block has ", count, " convolutions");
  }
  STD_TORCH_CHECK(static_cast<size_t>(tensor) == tensors.size(), op, ": ", tensors.size(), " tensors instead of ",
                  tensor);
  return blocks;
}

float* row(const Tensor& stats, const Unit& unit, Row which) {
  return static_cast<float*>(stats.data_ptr()) + which * unit.channels();
}

Norm norm_of(const Arguments& args, const Unit& unit, const Tensor& stats) {
  const Channels weight = args.channels("bn_weight", unit.get(kBnWeight));
  const Channels bias = args.channels("bn_bias", unit.get(kBnBias));
  if (unit.of_batch()) {
    return {{row(stats, unit, kMean), DType::f32}, {row(stats, unit, kInvstd), DType::f32}, false, 0, weight, bias};
  }
  return {args.channels("mean", unit.get(kRunningMean)),
          args.channels("var", unit.get(kRunningVar)),
          true,
          unit.eps,
          weight,
          bias};
}

Tensor normalise(const char* op, const Tensor& z, const Unit& unit, const Tensor& stats, const OptionalTensor& shortcut,
                 void* stream) {
  const Arguments args(op, "z", z);
  const Tensor out = empty_map(z, z.sizes());
  cuda::bn_relu(args.layout(), z.data_ptr(),
                {norm_of(args, unit, stats), args.like("shortcut", shortcut), Activation::relu}, out.data_ptr(),
                stream);
  return out;
}

namespace {

using torch::stable::detail::from;
using torch::stable::detail::to;

constexpr char kOp[] = "training_blocks";

Tensor torch_convolution(const Tensor& x, const Unit& unit) {
  std::array<StableIValue, 9> stack{from(x),           from(unit.weight()), from(std::nullopt),
                                    from(unit.stride), from(unit.padding),  from(unit.dilation),
                                    from(false),       from(Pair{0, 0}),    from(unit.groups)};
  call_torch("aten::convolution", stack);
  return channels_last(to<Tensor>(stack[0]));
}

// The output of a unit's convolution. Its statistics are written to `stats`. own: whether one kernel computes both.
Tensor convolve(const Tensor& x, const Unit& unit, const Tensor& stats, bool own, bool allow_tf32, void* stream) {
  constexpr MutableChannels kFloat{nullptr, DType::f32};
  MutableChannels scratch_mean = kFloat, var = kFloat;
  if (unit.of_batch()) {
    scratch_mean.data = row(stats, unit, kScratch);
    var.data = row(stats, unit, kVar);
  }
  if (!own) {
    const Tensor z = torch_convolution(x, unit);
    if (!unit.of_batch()) return z;
    const Layout layout = Arguments(kOp, "z", z).layout();
    const Scratch scratch(z, cuda::bn_stats_scratch(layout));
    cuda::bn_stats(layout, z.data_ptr(), row(stats, unit, kMean), row(stats, unit, kInvstd), scratch_mean, var, nullptr,
                   1.0, unit.eps, scratch.data(), stream);
    return z;
  }
  const Arguments args(kOp, "x", x);
  const Tensor weight = channels_last(unit.weight());
  const Convolution conv = conv_of(args, x, weight, unit.stride, unit.padding, unit.dilation, unit.groups);
  const Tensor z = empty_map(x, {conv.n, conv.k * conv.groups, conv.p, conv.q});
  const ConvChoice choice;
  const Scratch scratch(x, cuda::conv_stats_scratch(args.dtype(), conv, allow_tf32, choice));
  cuda::conv_stats(args.dtype(), x.data_ptr(), weight.data_ptr(), z.data_ptr(), conv, row(stats, unit, kMean),
                   row(stats, unit, kInvstd), scratch_mean, var, nullptr, 1.0, unit.eps, allow_tf32, choice,
                   scratch.data(), stream);
  return z;
}

std::vector<Tensor> forward(Tensor x, std::vector<Tensor> tensors, std::vector<int64_t> numbers,
                            std::vector<double> eps, std::vector<int64_t> own, bool allow_tf32) {
  const std::vector<Block> blocks = decode(kOp, tensors, numbers, eps);
  const Place place(kOp, x);
  void* stream = place.stream();
  std::vector<Tensor> all_stats, to_clear, found{x}, outs;
  for (const Block& block : blocks) {
    for (const Unit& unit : block.units) {
      all_stats.push_back(unit.of_batch() ? empty(x, {kRows, unit.channels()}, ScalarType::Float)
                                          : empty(x, {0}, ScalarType::Float));
      if (unit.of_batch()) to_clear.push_back(all_stats.back());
    }
  }
  STD_TORCH_CHECK(own.size() == all_stats.size(), kOp, ": ", own.size(), " choices for ", all_stats.size(),
                  " convolutions");
  if (!to_clear.empty()) {  // the kernels blend statistics in with weight 0
    std::array<StableIValue, 1> stack{from(to_clear)};
    call_torch("aten::_foreach_zero_", stack);
  }
  size_t next = 0;
  for (const Block& block : blocks) {
    const Tensor shortcut = outs.empty() ? x : outs.back();
    const size_t first = next;
    Tensor h = shortcut, z = shortcut;
    for (size_t u = 0; u < block.units.size(); ++u, ++next) {
      const Unit& unit = block.units[u];
      z = convolve(u > block.last() ? shortcut : h, unit, all_stats[next], own[next] != 0, allow_tf32, stream);
      if (u < block.last()) h = normalise(kOp, z, unit, all_stats[next], std::nullopt, stream);
      found.push_back(z);
      found.push_back(all_stats[next]);
    }
    const size_t end = first + block.last();
    const Unit& unit = block.units[block.last()];
    const Tensor& main = found[1 + 2 * end];
    if (!block.projects) {
      outs.push_back(normalise(kOp, main, unit, all_stats[end], shortcut, stream));
      continue;
    }
    const Arguments args(kOp, "z", main);
    const Norm norm = norm_of(args, unit, all_stats[end]);
    const Norm norm_beside = norm_of(args, block.units.back(), all_stats[end + 1]);
    outs.push_back(empty_map(main, main.sizes()));
    cuda::bn_add_bn_relu(args.layout(), main.data_ptr(), norm, args.like("shortcut", z), norm_beside,
                         outs.back().data_ptr(), stream);
  }
  found[0] = outs.back();
  found.insert(found.end(), outs.begin(), outs.end() - 1);
  return found;
}

}  // namespace
}  // namespace resnet_fused

STABLE_TORCH_LIBRARY_FRAGMENT(RESNET_FUSED_NAMESPACE, m) {
  // tensors, numbers, eps: as resnet_fused/ops/training/encoding.py makes them. own: for each convolution, whether
  // conv_stats runs it, else torch. The op returns what the op residual_blocks returns without `recompute`.
  m.def(
      "training_blocks(Tensor x, Tensor[] tensors, int[] numbers, float[] eps, int[] own, bool allow_tf32) -> "
      "Tensor[]");
}

STABLE_TORCH_LIBRARY_IMPL(RESNET_FUSED_NAMESPACE, RESNET_FUSED_CUDA_KEY, m) {
  m.impl("training_blocks", TORCH_BOX(&resnet_fused::forward));
}
