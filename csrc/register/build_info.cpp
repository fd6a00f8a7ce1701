// Information about this library, for `python -m resnet_fused info` and for the test whether the file is out of date.
#include "build_info.h"  // written by setup.py: kBuildInfo, a JSON object

#include <torch/csrc/stable/library.h>

#include <string>

#include "cpu/base/isa.h"

namespace {

std::string build_info() { return kBuildInfo; }
std::string cpu_isa() { return resnet_fused::cpu::isa_name(resnet_fused::cpu::isa()); }

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(resnet_fused_native, m) {
  m.def("build_info() -> str");
  m.def("cpu_isa() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(resnet_fused_native, CompositeExplicitAutograd, m) {
  m.impl("build_info", TORCH_BOX(&build_info));
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
}
